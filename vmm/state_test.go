package vmm

import (
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/workload"
	"golang.org/x/sys/unix"
)

const sampleMaps = `00400000-00401000 r--p 00000000 fe:00 1234 /bin/[vdso]x
7fff0f9f1000-7fff0f9f5000 r--p 00000000 00:00 0                          [vvar]
7fff0f9f5000-7fff0f9f7000 r--p 00000000 00:00 0                          [vvar_vclock]
7fff0f9f7000-7fff0f9f9000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

func TestClockAreas(t *testing.T) {
	list, vdso, err := clockAreas(strings.NewReader(sampleMaps))
	if err != nil {
		t.Fatal(err)
	}
	want := []area{
		{0x7fff0f9f1000, 0x7fff0f9f5000, false, "[vvar]"},
		{0x7fff0f9f5000, 0x7fff0f9f7000, false, "[vvar_vclock]"},
		{0x7fff0f9f7000, 0x7fff0f9f9000, true, "[vdso]"},
	}
	if len(list) != len(want) || vdso != 0x7fff0f9f7000 {
		t.Fatalf("%+v, vDSO at %#x", list, vdso)
	}
	for i := range want {
		if list[i] != want[i] {
			t.Errorf("%+v, want %+v", list[i], want[i])
		}
	}
	if list, vdso, err := clockAreas(strings.NewReader("00400000-00401000 r--p 0 0:0 0 /bin/x\n")); err != nil || vdso != 0 || len(list) != 0 {
		t.Errorf("without a vDSO: %+v, %#x, %v", list, vdso, err)
	}
	if _, _, err := clockAreas(strings.NewReader("junk r-xp 0 00:00 0 [vdso]\n")); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("junk: %v", err)
	}
}

func FuzzClockAreas(f *testing.F) {
	f.Add(sampleMaps)
	f.Fuzz(func(t *testing.T, maps string) {
		list, vdso, err := clockAreas(strings.NewReader(maps))
		if err == nil && vdso != 0 && len(list) == 0 {
			t.Errorf("a vDSO at %#x in no area", vdso)
		}
	})
}

// The signals of the exceptions are those that the built-in faults expect of native Linux.
func TestExceptionSignals(t *testing.T) {
	for _, f := range workload.Faults() {
		e, ok := exceptions[int(f.Vector)]
		if !ok || e.signal != unix.Signal(f.Signal) || e.name == "" {
			t.Errorf("vector %d (%s): %+v, natively %v", f.Vector, f.Name, e, f.Signal)
		}
	}
	// Those that push an error code (Intel SDM vol. 3A, table 6-1): with one bit wrong the frame is read amiss.
	code := map[int]bool{8: true, 10: true, 11: true, 12: true, 13: true, 14: true, 17: true, 21: true}
	for v, e := range exceptions {
		if e.code != code[v] {
			t.Errorf("vector %d: error code %v", v, e.code)
		}
	}
}
