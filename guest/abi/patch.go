package abi

// What a program tells of where it can be patched, as ELF notes (docs/patching.md). Of each the name is NoteOwner and the type Note…; all integers
// are little-endian, and an address is an int64: the distance from the field that holds it, so that no note needs a relocation.
const (
	NoteOwner = "Cloister"

	// NoteSite is one instruction that may be changed: kind uint32 (SiteImm, SiteBranch), length of the instruction uint32, address of the
	// instruction, then for SiteImm offset and width of the immediate within it (uint32 each), for SiteBranch the address that
	// it jumps to when it is on; then the name, NUL-terminated. Several notes may share a name: they change together.
	NoteSite = 1
	// NoteSafeWord is the address of a uint32 that is not 0 while a patch waits for the program to reach a safe point; it then calls SysSafepoint.
	NoteSafeWord = 2
	// NoteSafeRIP is the address of an instruction at which a thread may be stopped and patched: no function on its stack would see a mixture.
	NoteSafeRIP = 3
	// NotePatchable says that functions of the program may be replaced (-fpatchable-function-entry); it has no content.
	NotePatchable = 4
)

// Kinds of NoteSite.
const (
	SiteImm    = 1 // an instruction with an immediate operand of 1, 2, 4 or 8 bytes
	SiteBranch = 2 // a 5-byte NOP (off) or JMP rel32 (on)
)

// SiteName bounds the length of a site's name, bytes without the NUL.
const SiteName = 128

// First arguments of SysSafepoint.
const (
	// SafepointHere says that the calling thread is at a safe point. When a patch waits it is made before the call returns. Returns 0.
	SafepointHere = 0
	// SafepointWord registers a 4-byte aligned uint32, the second argument, for programs that have no notes (NoteSafeWord). Returns 0, -EFAULT, -EINVAL or -ENOSPC.
	SafepointWord = 1
	// SafepointQuiet says (second argument 1) that the calling thread runs nothing that is ever patched until it says otherwise (0): a helper that
	// sleeps in a system call must not hold up a patch. Returns 0; -EINVAL for another argument.
	SafepointQuiet = 2
)

// SafeWords bounds how many words a program may register.
const SafeWords = 16

// PatchSpace is how much spare text, and as much spare data, a program with NotePatchable or NoteSite gets, bytes.
const PatchSpace = 256 << 10
