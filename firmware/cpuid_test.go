package firmware

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// recorded reads a file of testdata: what KVM lists, and what the host's CPUID says.
func recorded(t *testing.T, name string) (supported []Entry, host func(leaf, sub uint32) Regs) {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	regs := map[[2]uint32]Regs{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		var who string
		var e Entry
		if _, err := fmt.Sscanf(sc.Text(), "%s %x %x %x %x %x %x %x", &who, &e.Function, &e.Index, &e.Flags, &e.EAX, &e.EBX, &e.ECX, &e.EDX); err != nil {
			t.Fatalf("%s: %q: %v", name, sc.Text(), err)
		}
		if who == "kvm" {
			supported = append(supported, e)
		} else {
			regs[[2]uint32{e.Function, e.Index}] = Regs{e.EAX, e.EBX, e.ECX, e.EDX}
		}
	}
	return supported, func(leaf, sub uint32) Regs { return regs[[2]uint32{leaf, sub}] }
}

// everything is a CPU that lists every feature there is, in every leaf.
func everything() []Entry {
	const ones = 0xffffffff
	es := []Entry{{Function: 0, EAX: 0x24, EBX: 0x756e6547, EDX: 0x49656e69, ECX: 0x6c65746e}}
	for leaf := uint32(1); leaf <= 0x24; leaf++ {
		if leaf == 0xd {
			continue
		}
		es = append(es, Entry{leaf, 0, 0, ones, ones, ones, ones})
		if leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0x14 {
			es[len(es)-1].Flags = FlagIndex
			es = append(es, Entry{leaf, 1, FlagIndex, ones, ones, ones, ones})
		}
	}
	es = append(es, Entry{0xd, 0, FlagIndex, 0x602e7 | 0x18, 11000, 11000, 0}, Entry{0xd, 1, FlagIndex, 0x1f, 11000, 0x1800, 0})
	for i, s := range [][2]uint32{2: {256, 576}, 3: {64, 960}, 4: {64, 1024}, 5: {64, 1088}, 6: {512, 1152}, 7: {1024, 1664}, 9: {8, 2688}, 17: {64, 2752}, 18: {8192, 2816}} {
		if s[0] != 0 {
			es = append(es, Entry{0xd, uint32(i), FlagIndex, s[0], s[1], 0, 0})
		}
	}
	es = append(es, Entry{Function: 0x40000000, EAX: 0x40000001, EBX: 0x4b4d564b}, Entry{Function: 0x40000001, EAX: ones})
	es = append(es, Entry{Function: 0x80000000, EAX: 0x80000026})
	for leaf := uint32(0x80000001); leaf <= 0x80000026; leaf++ {
		es = append(es, Entry{leaf, 0, 0, ones, ones, ones, ones})
	}
	return es
}

func without(es []Entry, leaf uint32, ecx, ebx uint32) []Entry {
	out := append([]Entry(nil), es...)
	for i := range out {
		if out[i].Function == leaf && out[i].Index == 0 {
			out[i].ECX &^= ecx
			out[i].EBX &^= ebx
		}
	}
	return out
}

func TestCPUID(t *testing.T) {
	pvm, pvmHost := recorded(t, "pvm-cascadelake.txt")
	for _, c := range []struct {
		name      string
		supported []Entry
		host      func(leaf, sub uint32) Regs
		o         CPUIDOptions
		xcr0, cr4 uint64
		size      uint32
		sigStack  uint64
	}{
		{name: "PVM as listed", supported: pvm, host: pvmHost, cr4: 0x620, size: 512, sigStack: 1440},
		{name: "PVM, native", supported: pvm, host: pvmHost, o: CPUIDOptions{Native: true}, xcr0: 0xe7, cr4: 0x50620, size: 2688, sigStack: 3616},
		{name: "PVM, native, no XSAVE", supported: pvm, host: pvmHost, o: CPUIDOptions{Native: true, NoXSave: true}, cr4: 0x10620, size: 512, sigStack: 1440},
		{name: "PVM, native but no host", supported: pvm, o: CPUIDOptions{Native: true}, cr4: 0x620, size: 512, sigStack: 1440},
		{name: "everything", supported: everything(), xcr0: 0xe7, cr4: 0x50620, size: 2688, sigStack: 3616},
		{name: "no AVX-512", supported: without(everything(), 7, 0, 1<<16), xcr0: 7, cr4: 0x50620, size: 832, sigStack: 1760},
		{name: "no AVX", supported: without(everything(), 1, ecxAVX, 0), xcr0: 3, cr4: 0x50620, size: 576, sigStack: 1504},
		{name: "no XSAVE", supported: without(everything(), 1, ecxXSAVE, 0), cr4: 0x10620, size: 512, sigStack: 1440},
		{name: "no FSGSBASE", supported: without(everything(), 7, 0, 1), xcr0: 0xe7, cr4: 0x40620, size: 2688, sigStack: 3616},
		{name: "nothing", cr4: 0x620, size: 512, sigStack: 1440},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := append([]Entry(nil), c.supported...)
			es := CPUID(c.supported, c.host, c.o)
			if !reflect.DeepEqual(before, append([]Entry(nil), c.supported...)) {
				t.Error("the argument was changed")
			}
			if got := XCR0(es); got != c.xcr0 {
				t.Errorf("XCR0 %#x, want %#x", got, c.xcr0)
			}
			if got := CR4(es); got != c.cr4 {
				t.Errorf("CR4 %#x, want %#x", got, c.cr4)
			}
			if got := XSaveSize(es); got != c.size {
				t.Errorf("XSAVE area %d, want %d", got, c.size)
			}
			if got := MinSigStack(es); got != c.sigStack {
				t.Errorf("signal stack %d, want %d", got, c.sigStack)
			}
			checkConsistent(t, es)
		})
	}
}

// checkConsistent holds entries against the numbered promises of doc.go.
func checkConsistent(t *testing.T, es []Entry) {
	t.Helper()
	seen := map[[2]uint32]bool{}
	for i, e := range es {
		k := [2]uint32{e.Function, e.Index}
		if seen[k] {
			t.Errorf("leaf %#x.%d twice", e.Function, e.Index)
		}
		seen[k] = true
		if i > 0 && (es[i-1].Function > e.Function || es[i-1].Function == e.Function && es[i-1].Flags&FlagIndex == 0) {
			t.Errorf("leaf %#x.%d is out of order or hidden by one without an index flag", e.Function, e.Index)
		}
	}
	one, _ := find(es, 1, 0)
	seven, _ := find(es, 7, 0)
	ext, _ := find(es, 0x80000001, 0)
	xcr0 := XCR0(es)
	if one.ECX&(ecxHidden|ecxOSXSAVE) != 0 || one.EDX&edxHidden != 0 || one.EBX>>16 > 1 {
		t.Errorf("leaf 1 announces what is not there: %+v", one)
	}
	if len(es) > 2 && one.ECX&ecxHyper == 0 {
		t.Error("leaf 1 hides the hypervisor")
	}
	if seven.EBX&ebx7Hidden != 0 || seven.ECX&ecx7Hidden != 0 || seven.EDX&edx7Hidden != 0 {
		t.Errorf("leaf 7 announces PKU, MPX, AMX, CET or the like: %+v", seven)
	}
	if xcr0&xcrAVX == 0 && (one.ECX&(ecxAVX|ecxFMA|ecxF16C) != 0 || seven.EBX&ebx7AVX != 0 || seven.ECX&ecx7AVX != 0 || ext.ECX&ecxExtAVX != 0) {
		t.Error("AVX without its state")
	}
	if xcr0&xcrAVX512 == 0 && (seven.EBX&ebx7AVX512 != 0 || seven.ECX&ecx7AVX512 != 0 || seven.EDX&edx7AVX512 != 0) {
		t.Error("AVX-512 without its state")
	}
	if ext.ECX&(1<<2) != 0 || ext.EDX&edxExtAPIC != 0 {
		t.Error("leaf 0x80000001 announces SVM or an APIC")
	}
	if (one.ECX&ecxXSAVE != 0) != (xcr0 != 0) {
		t.Error("XSAVE and XCR0 disagree")
	}
	for _, e := range es {
		if e.Function != 0xd {
			continue
		}
		if xcr0 == 0 || e.Index > 1 && xcr0>>e.Index&1 == 0 {
			t.Errorf("leaf 0xd.%d of state that is not there", e.Index)
		}
		if e.Index == 1 && (e.EAX>>3 != 0 || e.ECX|e.EDX != 0) {
			t.Errorf("leaf 0xd.1 announces supervisor state: %+v", e)
		}
	}
	for _, range_ := range []uint32{0, 0x80000000} {
		if first, ok := find(es, range_, 0); ok {
			last := uint32(0)
			for _, e := range es {
				if e.Function>>16 == range_>>16 {
					last = e.Function
				}
			}
			if first.EAX != last {
				t.Errorf("leaf %#x says that %#x is the last, it is %#x", range_, first.EAX, last)
			}
		}
	}
	if e, ok := find(es, 4, 0); ok && e.EAX>>14 != 0 {
		t.Errorf("leaf 4 shares caches: %#x", e.EAX)
	}
	for i, want := range []Entry{{EBX: 1, ECX: 0x100}, {EBX: 1, ECX: 0x201}, {ECX: 2}} {
		want.Function, want.Index, want.Flags = 0xb, uint32(i), FlagIndex
		if e, ok := find(es, 0xb, uint32(i)); ok && e != want {
			t.Errorf("leaf 0xb.%d: %+v", i, e)
		}
	}
	if e, ok := find(es, 0x40000001, 0); ok {
		t.Errorf("paravirtual features announced: %+v", e)
	}
}

func TestCPUIDDetails(t *testing.T) {
	pvm, host := recorded(t, "pvm-cascadelake.txt")
	es := CPUID(pvm, host, CPUIDOptions{Native: true, TSCKHz: 2700000})
	for _, c := range []struct {
		what      string
		leaf, sub uint32
		want      Entry
	}{
		{"signature", 0x40000000, 0, Entry{EAX: 0x40000010, EBX: 0x696f6c43, ECX: 0x72657473, EDX: 0x004d4d56}},
		{"TSC frequency", 0x40000010, 0, Entry{EAX: 2700000}},
		{"XSAVE sizes", 0xd, 0, Entry{Flags: 1, EAX: 0xe7, EBX: 2688, ECX: 2688}},
		{"XSAVE forms", 0xd, 1, Entry{Flags: 1, EAX: 7, EBX: 2432}},
		{"AVX state", 0xd, 2, Entry{Flags: 1, EAX: 256, EBX: 576}},
		{"model", 1, 0, Entry{EAX: 0x50657, EBX: 0x00010800, ECX: 0xf6d83203 &^ ecxHidden &^ ecxOSXSAVE, EDX: 0x0f8bfbff &^ edxHidden}},
		{"caches", 4, 3, Entry{Flags: 1, EAX: 0x163, EBX: 0x0280003f, ECX: 0xcfff, EDX: 5}},
	} {
		got, ok := find(es, c.leaf, c.sub)
		c.want.Function, c.want.Index = c.leaf, c.sub
		if !ok || got != c.want {
			t.Errorf("%s: %#v (%v)\nwant %#v", c.what, got, ok, c.want)
		}
	}
	if h, h2 := HWCap(es); h != uint64(0x0f8bfbff&^edxHidden) || h2 != 2 {
		t.Errorf("AT_HWCAP %#x, AT_HWCAP2 %#x", h, h2)
	}
	if got := CPUID(pvm, host, CPUIDOptions{Signature: "a name that is too long"}); got == nil {
		t.Error("no entries")
	}
}

// TestCPUIDAsksLittle counts what the host is asked for. Each is an exit to the hypervisor below where this host is
// itself a virtual machine, and every start pays for it.
func TestCPUIDAsksLittle(t *testing.T) {
	pvm, host := recorded(t, "pvm-cascadelake.txt")
	asked := map[uint32]int{}
	CPUID(pvm, func(leaf, sub uint32) Regs {
		asked[leaf]++
		return host(leaf, sub)
	}, CPUIDOptions{Native: true})
	for leaf := range asked {
		switch leaf {
		case 0, 1, 7, 0xd, 0x15, 0x16, 0x80000001:
		default:
			t.Errorf("the host was asked for leaf %#x, which decides nothing", leaf)
		}
	}
	for _, leaf := range []uint32{0, 1, 7, 0x80000001} {
		if asked[leaf] != 1 {
			t.Errorf("the host was asked for leaf %#x %d times, want once", leaf, asked[leaf])
		}
	}
}

// TestTSCLeaves keeps leaf 0x15 and 0x16: of KVM if it lists them, of the host otherwise.
func TestTSCLeaves(t *testing.T) {
	host := func(leaf, sub uint32) Regs {
		switch leaf {
		case 0:
			return Regs{EAX: 0x16}
		case 0x15:
			return Regs{EAX: 2, EBX: 216, ECX: 25000000}
		case 0x16:
			return Regs{EAX: 2700, EBX: 4000, ECX: 100}
		}
		return Regs{}
	}
	base := []Entry{{Function: 0, EAX: 0xd}, {Function: 1, ECX: 1 << 13}}
	es := CPUID(base, host, CPUIDOptions{})
	if e, _ := find(es, 0x15, 0); e != (Entry{Function: 0x15, EAX: 2, EBX: 216, ECX: 25000000}) {
		t.Errorf("leaf 0x15: %+v", e)
	}
	if e, _ := find(es, 0, 0); e.EAX != 0x16 {
		t.Errorf("last leaf %#x", e.EAX)
	}
	es = CPUID(append(base, Entry{Function: 0x15, EAX: 1, EBX: 2, ECX: 3}), host, CPUIDOptions{})
	if e, _ := find(es, 0x15, 0); e.EBX != 2 {
		t.Errorf("KVM's leaf 0x15 was replaced: %+v", e)
	}
	es = CPUID(base, nil, CPUIDOptions{})
	if _, ok := find(es, 0x15, 0); ok {
		t.Error("leaf 0x15 from nowhere")
	}
	old := func(leaf, sub uint32) Regs { // beyond its highest leaf a CPU of Intel's repeats that one
		if leaf == 0 {
			return Regs{EAX: 0x14}
		}
		return Regs{EAX: 7, EBX: 7, ECX: 7}
	}
	if e, ok := find(CPUID(base, old, CPUIDOptions{}), 0x15, 0); ok {
		t.Errorf("the host has no leaf 0x15, the guest has %+v", e)
	}
}

func FuzzCPUID(f *testing.F) {
	f.Add(uint32(0xffffffff), uint32(0xffffffff), uint32(0xffffffff), uint32(0xe7), uint32(0x1f), true)
	f.Fuzz(func(t *testing.T, ecx1, ebx7, ecx7, d0, d1 uint32, native bool) {
		es := everything()
		for i := range es {
			switch e := &es[i]; {
			case e.Function == 1:
				e.ECX = ecx1
			case e.Function == 7 && e.Index == 0:
				e.EBX, e.ECX = ebx7, ecx7
			case e.Function == 0xd && e.Index == 0:
				e.EAX = d0
			case e.Function == 0xd && e.Index == 1:
				e.EAX = d1
			}
		}
		host := func(leaf, sub uint32) Regs { return Regs{d0, d1, ecx1, ebx7} }
		out := CPUID(es, host, CPUIDOptions{Native: native})
		x := XCR0(out)
		if x&^XCR0Mask != 0 || x != 0 && x&xcrSSE != xcrSSE || x&xcrAVX512 != 0 && (x&xcrAVX512 != xcrAVX512 || x&xcrAVX == 0) {
			t.Errorf("XSETBV would fault on %#x", x)
		}
		checkConsistent(t, out)
	})
}
