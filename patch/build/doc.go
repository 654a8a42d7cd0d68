// Package build makes a plan of what a user asks: it reads the program, objects and bundles, decodes and checks every site, and refuses whole what
// cannot be proved. It runs in the process of the patch command, far from the engine, and meets all of the hostile input.
//
// A request is a Bundle, whether it came from flags or from a file: functions to replace (a relocatable object each), declared sites to set, and single
// instructions to exchange. Open compares the program's file with the running text; Program.Plan makes the plan; Program.List says what can be patched.
//
//	p, err := build.Open(file, size, state, text)
//	made, err := p.Plan(&build.Bundle{Set: []build.Set{{Site: "rate.limit", Value: "0x2a"}}})
//
// Invariants:
//  1. A plan is made whole or not at all, and making one changes nothing.
//  2. What runs is what the file says, but for the sites of patches that stand: else nothing is planned ("text is not what we think").
//  3. A site is one instruction before and after, of one length, at a proved or declared boundary, and no direct branch of its function leads into it; the
//     one exception is the declared entry of a function, five bytes of NOPs. No site is a call, a system call, or an interrupt.
//  4. New code and data lie in spare memory that no patch used before, and every relocation in them is applied or the object is refused.
//  5. Files are untrusted: no input panics, or makes the package hold more than a few times its bounds.
//
// As a static linker would, for which the program came first, a new object's weak definitions and common symbols yield to the program's, its
// undefined weak symbols may stay 0, and its other definitions are its own. Unlike one it sees the program's file-local symbols, and refuses
// a second definition of the program's global data, whose state would otherwise be split in two without a word.
//
// Alternatives rejected: debug/elf's own reader (allocates what headers claim, copies names without bound, panics on some input); running ld (not on every
// machine, and it knows nothing of a running image); relaxing GOT loads (saves a load, and rewrites instructions that nobody then has proved);
// a decoder of our own (x86asm knows what compilers emit; where it does not, nothing is proved and the site is refused).
package build
