package running

import (
	"unsafe"

	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/vcpu"
)

// A stop carries as many stores as a patch may want of it, or more: else this does not compile.
const _ = uint(vcpu.MostStores - patch.MostStores)

// words gives stores as a vCPU's thread makes them: the mappings that they lie in stay for as long as the guest.
func words(list []patch.Store) []vcpu.Store {
	out := make([]vcpu.Store, len(list))
	for i, s := range list {
		out[i] = vcpu.Store{To: uintptr(unsafe.Pointer(&s.To[0])), Old: s.Old, New: s.New}
	}
	return out
}
