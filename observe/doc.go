// Package observe shows running VMs to people and machines: Prometheus metrics, the control socket of a VM
// with its client, and the tables of `cloister ps` and `cloister stats`.
//
// It is given plain data: the facts of a VM, and a Source that returns a Snapshot when asked. Where the
// snapshot comes from (the shared ledger, the kernel's statistics, /proc) is the caller's business, so
// nothing in here can reach a vCPU. docs/metrics.md documents what it serves, for users.
//
// Invariants:
//  1. A scrape and a request cost the engine nothing: they read a Snapshot and write none.
//  2. A counter never falls between two scrapes, though some are differences of figures that were not
//     read at the same instant; a figure that is not known is left out, not shown as 0.
//  3. The values of every label come from a list that is closed for the life of a VM, but names of the guest's
//     threads: of those a vCPU shows a bounded number.
//  4. What a client sends is bounded (size, time, number at once), and so is what a server sends back.
//  5. The terminal is left as it was found, however the view ends.
//
// Alternatives rejected: counters of client_golang that the monitor increments (a second set of books that
// can disagree with the ledger; a Collector over a snapshot cannot); fixed decimal bounds of the length
// histogram (the ledger's buckets are powers of two in TSC cycles, so a decimal bound would be a guess
// within a bucket) and native histograms (their bounds are powers of two in seconds, the same guess);
// smaps_rollup for memory (it walks the engine's page tables under its mmap lock, which its page faults
// need); a TUI library for a table that is redrawn once a second.
package observe
