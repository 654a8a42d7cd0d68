// Package sdk holds, in its directories, what a program uses to speak to Cloister: c (a header for C and
// C++), go (package cloister) and rust (a crate). It has no code of its own: its test writes the parts of
// the header and of the crate that repeat guest/abi, compares them with it, compiles the examples and runs them.
//
// C and Go also have rings: records in shared memory (docs/rings.md).
//
// Invariants:
//  1. A program that uses an SDK runs natively as if it did not: the system calls answer ENOSYS there, and
//     every example ends with status 0 (TestExamples).
//  2. Numbers and layouts are guest/abi's: `go test ./guest/sdk -run TestGenerated -update` writes them, and
//     TestLayoutC and TestLayoutRust let the compilers check every offset.
//  3. No SDK depends on anything but its language and Linux on x86-64; none allocates, locks or links a library.
//
// Alternatives rejected: a shared library (the guests are static); a device or a file to write to (needs a
// Linux that has it, so a program could not run natively unchanged); VMCALL (faults natively, and KVM serves
// some of its numbers itself).
package sdk
