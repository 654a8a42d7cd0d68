// Package monitor is the process beside the engine: evidence, budget, report, metrics, control socket; and the
// commands that look at running VMs.
//
// Invariants:
//  1. It maps the ledger read-only and writes to nothing that the guest or the engine waits for, but for
//     the page of the guest's own clock, whose readers never wait (docs/ordering.md, O5).
//  2. Killed or slow, it changes nothing for the guest.
//  3. A figure that was not measured is left out of the report, with the reason.
//
// Alternatives rejected: docs/decisions/0002-engine-and-monitor.md.
package monitor
