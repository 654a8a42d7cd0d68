// Package abi is the contract between the VMM and what runs in the guest: addresses, ports,
// selectors, Cloister's own system calls and the memory blocks that both sides touch.
//
// It holds constants and plain structs only and imports nothing, so that loaders, stubs, workloads,
// SDKs and the VMM can all depend on it.
//
// Invariants:
//  1. Every constant that assembly or C uses exists here once; a test compares the others with it.
//  2. No two regions of the guest's address space overlap (layout_test.go).
package abi
