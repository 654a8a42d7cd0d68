// Package engine is the process that the user started: it owns the VM and serves its exits. It starts the
// monitor as its child and does not need it.
//
// Invariants:
//  1. Once the guest runs, nothing here allocates, maps or makes threads except while an exit is served,
//     a patch is made, or when somebody asks for the end. A patch maps once, and unmaps nothing.
//  2. Bad input is refused before anything is made; whatever was made is taken back at the end.
//  3. It imports nothing that the guest's start would have to wait for: no HTTP, no Prometheus, no symbols.
//
// Alternatives rejected: docs/decisions/0002-engine-and-monitor.md.
package engine
