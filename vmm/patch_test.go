package vmm

import "testing"

// TestLanding: a signal frame that returns among the NOPs of a redirected entry returns to the entry; any other to where it says.
func TestLanding(t *testing.T) {
	m := &Machine{}
	if got := m.landing(0x1003); got != 0x1003 {
		t.Errorf("nothing is redirected: %#x", got)
	}
	m.Entries([]uint64{0x1000, 0x2000})
	for rip, want := range map[uint64]uint64{0xfff: 0xfff, 0x1000: 0x1000, 0x1001: 0x1000, 0x1004: 0x1000, 0x1005: 0x1005, 0x2002: 0x2000, 0x3000: 0x3000} {
		if got := m.landing(rip); got != want {
			t.Errorf("%#x returns to %#x, want %#x", rip, got, want)
		}
	}
	m.Entries(nil)
	if got := m.landing(0x1003); got != 0x1003 {
		t.Errorf("reverted: %#x", got)
	}
}
