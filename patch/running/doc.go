// Package running is a vmm.Machine as package patch needs it: an adapter, so that plans can be made, checked and logged without KVM.
//
// Invariants:
//  1. It decides nothing: every judgement is patch's or vmm's.
//
// Alternatives rejected: patch importing vmm (the off-line builder would then need KVM); vmm importing patch (a machine does not know who changes it).
package running
