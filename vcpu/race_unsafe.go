//go:build race

package vcpu

import (
	"runtime"
	"unsafe"
)

// The race detector sees neither the vCPU's thread nor the words of control, which are not on Go's heap: it would take for a race what
// O1 and O3 order. These two tell it of the orders that docs/ordering.md proves, no more: whoever goes on behind hand, ack, synced or the
// thread's end has seen what was done before hand, go or rel was stored.

// raceSaw stands behind a load that ordered.
func (t *Thread) raceSaw() { runtime.RaceAcquire(unsafe.Pointer(&t.c)) }

// raceSays stands before a store that orders.
func (t *Thread) raceSays() { runtime.RaceReleaseMerge(unsafe.Pointer(&t.c)) }
