// Package breaks is the vocabulary and the bookkeeping of isolation breaks: the closed list of
// causes, the ledger that a vCPU thread writes and the monitor reads, budgets, and the report.
//
// It drives no virtual machine: any thread that can say "I was away from t0 to t1 because of X" can keep
// such a ledger. What KVM's own statistics mean is in kernel.go and nowhere else.
//
// A Budget judges a ledger, a Notifier tells sinks what is new in it, and Build makes a Report of it,
// which is plain data: Encode writes it as JSON, WriteText for a human.
//
// Invariants:
//  1. For every book, Total == sum of Cause[].Count over causes that are not FromKernel, and
//     Lost == sum of their Lost, whenever Seq is even and the vCPU is out of the guest.
//  2. One writer. Readers never write.
//  3. Every table that can overflow counts what it dropped.
//  4. exits == returns that are exits + what the causes FromKernel count, or the kernel's half is
//     reported as not closed, with the numbers (kernel.go).
//  5. A budget is kept only if every clause was tested against figures that are known.
//  6. A report's totals are the sums of its parts, and a figure that was not measured is null.
//
// Alternatives rejected: a channel or a ring of events as the primary record (loses under load, and a
// reader that sleeps changes the figures); counters behind sync/atomic adds (a single writer needs no
// LOCK prefix. ORDER(O2): an increment of Seq pairs with Snapshot's loads; without it a copy could be half old); clamping a negative remainder of the kernel's statistics to 0
// (hides that they are misread); percentiles by interpolation within a bucket (a figure that nobody
// measured: bounds are given instead); one signal for one kind of break (a Rule sends any cause to any
// Sink).
package breaks
