// Package session is what the engine and the monitor of one VM have in common: the messages between them,
// the directory by which others find the VM, exit statuses and one-line errors.
//
// Invariants:
//  1. Nothing sent on the wire is needed for the guest to run.
//  2. A VM's directory exists only under its engine's lock, or is a dead VM's; whoever removes one holds
//     the lock of all.
//
// Alternatives rejected: files with process ids (a PID is reused), a daemon that knows all VMs (one more
// thing that can be down).
package session
