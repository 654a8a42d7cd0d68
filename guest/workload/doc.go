// Package workload makes the built-in programs that `cloister run @NAME` runs: small static ELF files whose
// machine code is Go assembly, so that the Go toolchain alone builds them.
//
// Each program is one position-independent TEXT symbol in NAME_amd64.s that never runs as part of Cloister:
// ELF copies its bytes out of Cloister's own text and wraps them in an ET_EXEC file. Places that get a
// symbol are marked by a NOP with a magic operand (LABEL in blob_amd64.h). The same file runs natively:
// Cloister's own system calls answer ENOSYS there, and the programs go on.
//
//	0x400000  R-X  ELF header, program headers, notes: a build ID, and what can be patched
//	0x401000  R-X  the program's code                      symbols NAME_start, NAME_loop, ...
//	0x600000  RW-  params: what the options became         symbol params
//	0x601000  RW-  abi.GapRecord (two pages)               symbol gap_record, RecordAddr
//	0x603000  RW-  @control-loop's ControlRecord           symbol control_record, ControlAddr
//
// Invariants:
//  1. A program refers to nothing outside its own code, the params page and the record: no Go symbol, no
//     thread-local storage, no stack but in @fault's and @control-loop's (TestCodeStaysInside disassembles every program).
//  2. The measuring loops of @jitter and @cyclic make no system call and touch two pages, both written
//     before sealing.
//  3. The numbers that assembly uses are those of Go (TestHeaderMatchesGo).
//  4. Provocations and the program of @exits come from one table.
//  5. The same options give the same bytes, whoever asks: the engine that runs a program and who reads its symbols or its notes each
//     make it anew. The build ID does not depend on the options.
//
// Alternatives rejected: ELF files in the repository (binaries that nobody can review); C with `go generate`
// (a second toolchain to build Cloister); an assembler of our own at run time (golang.org/x/arch only
// disassembles); an end symbol after the code (the linker may reorder functions: go tool link -randlayout);
// labels as TEXT symbols of their own (a branch between two needs a relocation, and has the same fault).
package workload
