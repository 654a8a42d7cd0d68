// Package symbol says what a guest address means: function, file and line with inlining, and the
// call stack above it, from the ELF file of the program that runs in the guest.
//
// It reads static and static-pie x86-64 programs of C, C++, Rust and Go, stripped or not, and knows no
// virtual machine: addresses and words come in, names go out. The sibling package profile writes
// such findings for the viewers that others have made.
//
// Invariants:
//  1. The file is untrusted. No input panics, recurses without bound, or makes the package hold more
//     than a few times maxDebug; what is beyond a bound is not known, and never half known.
//  2. Unwind returns what is sure: an address is added to a stack only when a table of the program, or
//     the instructions of the function itself, say where it is. It never scans a stack for words
//     that look like code: stale return addresses of earlier calls lie there, and look the same.
//  3. Stacks climb: a caller's frame lies above its callee's, so unwinding ends.
//  4. A missing or damaged table makes answers poorer, not wrong, and is no error.
//
// Alternatives rejected: debug/gosym (no stack depths, copies all names at once); delve's
// pkg/dwarf/frame (panics on DW_CFA_restore_state without its pair, loses the CIE's rules on
// DW_CFA_restore); debug/elf's DWARF() (allocates what a .zdebug header claims); an addr2line process
// (not on every machine, and slower than the run it reports on).
package symbol
