// Package patch changes the code of a running guest: stop every vCPU, inspect where each stands, compare, journal, store, read back, have
// each serialise on its own core, let them go.
//
// P3 to P8 are made by the last vCPU to stop, and the last to serialise, where nobody has to judge (docs/decisions/0020-who-stores.md); else here.
//
// The protocol is that of docs/patching.md and model/patch.pml, with the same words: P1..P8 on this side, V1..V8 on the
// vCPU's (package vcpu). What is patched is a Plan, made and checked off line by package patch/build; what became of it is a Record, which
// package patch/audit chains into a log. This package is the part that runs in the engine: it decodes no instruction and opens no file.
//
// Invariants (design note in docs/decisions/0011-patching.md):
//  1. (I2) A byte of text that a vCPU may execute is stored only between Stop and Resume of every vCPU.
//  2. (I3) A vCPU enters the guest after a patch only behind a serialising instruction on its own core, executed after the last store.
//  3. (I5) At every Resume the sites hold the committed version, all of them: a patch that is refused, aborted or rolled back has changed nothing.
//  4. (I7) One patch at a time; numbers only grow; each number has one Record, whatever became of it.
//  5. A VM whose text is in doubt (a rollback that does not read back, a vCPU that does not serialise in time) is never resumed.
//  6. The guest's text is writable through the private alias alone, which is not executable; the alias is never unmapped while the guest runs.
//
// Alternatives rejected: deferring the synchronisation to the next exit (in a guest without exits it never comes, docs/review-answers.md, point 2);
// the INT3 dance of text_poke_bp (needs a handler in the guest and three syncs, and buys nothing when all vCPUs are stopped); mprotect around each
// patch (zaps second-stage entries); replacing pages (the same).
package patch
