// Package elf reads a static or static-pie x86-64 Linux program and lays out its first stack, as
// Linux's fs/binfmt_elf.c would. It is pure data: it maps nothing and knows no VM. The caller copies
// each segment's file bytes into guest memory with ReadSegment, sets permissions from Pages, and
// starts at Entry with the stack that Stack wrote.
//
// Invariants:
//  1. Whatever the file says, Load allocates at most MaxHeaderBytes for headers, a few notes' worth
//     for the build ID, and O(number of segments) beyond; it reads nothing outside [0, size).
//  2. In an Image that Load returned, no address computation wraps: every segment lies in
//     [MinVA, MaxVA), that range lies in the window of its Type, and FileOffset+FileSize <= size.
//  3. Segments are disjoint, non-empty and never writable and executable at once; neither is any
//     Page.
//  4. Entry lies on an executable Page, within the bytes of a segment.
//  5. An Image does not change after Load; its methods may be called from any goroutine.
//
// Where two segments meet in one page Linux maps the page twice and the later program header wins.
// Pages gives that result for permissions. For contents, every segment's own bytes are kept: linkers
// that let segments share a page let them share the page of the file too, so this equals what Linux
// shows; for hand-made files whose file pages differ Linux would lose the earlier segment's bytes
// and we do not. Bytes of a page that belong to no segment are zero, where Linux would show whatever
// the file holds next to it: no program can rely on that.
//
// An executable stack (PT_GNU_STACK with PF_X) is not granted: StackExec notes the wish, the stack
// stays NX. Programs ask for one mostly by an assembler file that lacks the .note.GNU-stack section,
// hardly ever because they jump there. No PT_GNU_STACK means NX, as on x86-64 Linux since 5.8.
//
// Alternatives rejected. debug/elf: it sizes allocations by what headers claim, reads section
// headers that a stripped program lacks, and accepts most of what has to be refused here. Following
// Linux in what it tolerates (overlapping segments, W+X, p_filesz > p_memsz in part): each hides an error
// or weakens W^X, and no toolchain produces it.
package elf
