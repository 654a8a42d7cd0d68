package symbol

import (
	"bytes"
	"crypto/sha256"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// fuzzTime is CPU time, far above what an honest program of the fuzzer's sizes takes (a few milliseconds, ten times that under the race
// detector), and far below what an unbounded loop would.
const fuzzTime = 20 * time.Second

// maxFuzzTime is fuzzTime; on a machine that needs more than a quarter of a second for the yardstick (an emulated one), longer in proportion.
func maxFuzzTime(t *testing.T) time.Duration {
	t.Helper()
	start := cpuTime(t)
	sum := sha256.Sum256(nil)
	for range 400_000 { // 0.03 s of CPU time on an AMD EPYC, 0.13 s without its instructions for SHA-256
		sum = sha256.Sum256(sum[:])
	}
	return max(fuzzTime, 80*(cpuTime(t)-start))
}

// bounded fails when f computes too long or allocates out of proportion. What a busy machine makes of it does not count.
func bounded(t *testing.T, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := cpuTime(t)
	f()
	if d := cpuTime(t) - start; d > fuzzTime && d > maxFuzzTime(t) {
		t.Errorf("took %v of CPU time", d)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
		t.Errorf("allocated %d MiB", n>>20)
	}
}

// cpuTime is what the process has used; no test of this package runs beside another.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// FuzzELF gives whole files to everything that the package does.
func FuzzELF(f *testing.F) {
	for _, b := range seedFiles(f) {
		f.Add(b, uint64(0x401000))
	}
	f.Fuzz(func(t *testing.T, file []byte, addr uint64) {
		bounded(t, func() {
			tab, err := New(bytes.NewReader(file), int64(len(file)), 0)
			if err != nil {
				return
			}
			addrs := []uint64{addr}
			for _, x := range tab.img.exec[:min(2, len(tab.img.exec))] {
				addrs = append(addrs, x.lo, x.lo+(x.hi-x.lo)/2, x.hi-1)
			}
			for _, s := range tab.names.syms[:min(20, len(tab.names.syms))] {
				addrs = append(addrs, s.addr)
			}
			for _, d := range tab.cfi.fdes[:min(20, len(tab.cfi.fdes))] {
				addrs = append(addrs, d.lo+1, d.hi-1)
			}
			for _, a := range addrs {
				for _, fr := range tab.Frames(a) {
					_ = fr.String()
				}
				tab.Unwind(Regs{RIP: a, RSP: 0x1000}, addrs, 32)
				tab.Unwind(Regs{RIP: a, RSP: 0x1000, RBP: 0x1010, All: true}, addrs, 32)
			}
			buildID(mustELF(file))
		})
	})
}

func mustELF(file []byte) *elf.File {
	if f, err := openELF(bytes.NewReader(file)); err == nil {
		return f
	}
	return &elf.File{}
}

// FuzzCFI gives bytes to the reader of .eh_frame and executes every record.
func FuzzCFI(f *testing.F) {
	f.Add(ehFrame(), uint64(0x1008))
	f.Fuzz(func(t *testing.T, data []byte, pc uint64) {
		bounded(t, func() {
			tab := &Table{cfi: &cfiTable{data: data, addr: 0x400000}, lines: &lineTable{opened: true}}
			tab.img.exec = []extent{{0, ^uint64(0)}}
			tab.cfi.index()
			stack := []uint64{pc, 0x1004, 0x1003, 0x1002, 0x2000, 0x1001}
			for _, d := range tab.cfi.fdes {
				for _, a := range []uint64{d.lo, d.lo + (d.hi-d.lo)/2, d.hi - 1} {
					tab.cfi.row(d, a)
					tab.Unwind(Regs{RIP: a, RSP: 0x8000, RBP: 0x8010, All: true}, stack, 16)
				}
			}
			tab.Unwind(Regs{RIP: pc, RSP: 0x8000}, stack, 16)
		})
	})
}

// ehFrame is one CIE and one FDE for 0x1000..0x1100, with most kinds of instructions.
func ehFrame() []byte {
	cie := []byte{0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 16, 1, 0x00, 0x0c, 7, 8, 0x90, 1}
	fde := binary.LittleEndian.AppendUint64(nil, 0x1000)
	fde = binary.LittleEndian.AppendUint64(fde, 0x100)
	fde = append(fde, 0, 0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0x0a, 0x41, 0xc6, 0x0c, 7, 8, 0x0b, 0x02, 9,
		0x0f, 5, 0x77, 8, 0x06, 0x23, 8, 0x16, 3, 3, 0x77, 0, 0x22, 0x10, 6, 2, 0x76, 0x78, 0x09, 12, 13, 0x2e, 4, 0x03, 1, 0, 0x04, 1, 0, 0, 0)
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(cie)))
	out = append(out, cie...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(fde)+4))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(out)))
	return append(out, fde...)
}

// FuzzDWARF gives bytes to the sections of line information, past the container's checks.
func FuzzDWARF(f *testing.F) {
	for _, file := range seedFiles(f) {
		e := mustELF(file)
		var parts [6][]byte
		for i, name := range []string{".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_line_str", ".debug_rnglists"} {
			_, parts[i] = section(e, 1<<20, name)
		}
		if parts[0] != nil {
			f.Add(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], uint64(0x401000))
		}
	}
	f.Fuzz(func(t *testing.T, info, abbrev, line, str, lineStr, rng []byte, addr uint64) {
		bounded(t, func() {
			l := &lineTable{opened: true, budget: lineBudget, line: line}
			l.img.exec = []extent{{0x1000, 1 << 40}}
			offs, ok := vetUnits(info, abbrev)
			if !ok || !stringsBounded(str, maxNameLen) || !stringsBounded(lineStr, maxPath) {
				return
			}
			func() {
				defer func() { _ = recover() }() // debug/dwarf's own, as in at()
				l.d, _ = dwarf.New(abbrev, nil, nil, info, line, nil, nil, str)
				if l.d != nil && (l.d.AddSection(".debug_line_str", lineStr) != nil || l.d.AddSection(".debug_rnglists", rng) != nil) {
					l.d = nil
				}
			}()
			if l.d == nil {
				return
			}
			for i, off := range offs[:min(len(offs), 50)] {
				l.units = append(l.units, unit{off: off})
				l.ranges = append(l.ranges, unitRange{extent{uint64(0x1000 * (i + 1)), 1 << 40}, i})
			}
			l.at(addr)
			for i := range l.ranges {
				l.at(uint64(0x1000*(i+1)) + 4)
			}
			for i := range l.units {
				for _, fn := range l.units[i].funcs[:min(10, len(l.units[i].funcs))] {
					l.at(fn.lo)
				}
			}
		})
	})
}

// FuzzPrologue gives bytes to the reader of instructions.
func FuzzPrologue(f *testing.F) {
	f.Add([]byte("\x55\x48\x89\xe5\x53\x48\x83\xec\x18\xe8\x00\x00\x00\x00\x75\xf9\xc9\xc3"), uint64(14), true)
	f.Add([]byte("\xf3\x0f\x1e\xfa\x41\x54\x48\x81\xec\x00\x01\x00\x00\xff\xe0\x5c"), uint64(9), false)
	f.Fuzz(func(t *testing.T, code []byte, pc uint64, returned bool) {
		bounded(t, func() {
			m := image{exec: []extent{{0x1000, 0x1000 + uint64(len(code))}}, loads: []*elf.Prog{{
				ProgHeader: elf.ProgHeader{Vaddr: 0x1000, Filesz: uint64(len(code)), Memsz: uint64(len(code))}, ReaderAt: bytes.NewReader(code)}}}
			shape, found := m.prologue(extent{0x1000, 0x1000 + uint64(len(code))}, 0x1000+pc%(1<<20), returned)
			if found != notFound && shape.depth < 0 {
				t.Errorf("depth %d", shape.depth)
			}
			m.isReturn(0x1000 + pc)
			m.framed(0x1000, 0x1000+pc, returned)
		})
	})
}

func FuzzGoTable(f *testing.F) {
	f.Add([]byte{0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8}, uint64(0x401000))
	if testenv.Has(testenv.Tool("go")) {
		e, err := elf.Open(build(f, programs[13]))
		if err != nil {
			f.Fatal(err)
		}
		defer e.Close()
		if _, b := section(e, maxSection, ".gopclntab"); len(b) > 4096 {
			f.Add(b[:4096], uint64(0x401000))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, addr uint64) {
		bounded(t, func() {
			g := parseGoTable(b, 0x401000)
			if g == nil {
				return
			}
			for _, a := range []uint64{addr, 0x401000, 0x401001, 0x401000 + addr%4096} {
				if fn, ok := g.find(a); ok {
					_ = g.name(fn)
					g.depth(fn, a)
				}
				g.line(a)
			}
		})
	})
}

func FuzzDemangle(f *testing.F) {
	f.Add("_ZN5space7DerivedIlE2goEi")
	f.Add("_RNvNtCs1234_7mycrate3foo3bar")
	f.Fuzz(func(t *testing.T, name string) {
		bounded(t, func() {
			if s := pretty(name); len(s) > 4<<13 && len(s) > len(name) {
				t.Errorf("%d bytes of name", len(s))
			}
		})
	})
}

// seedFiles are small programs, for the fuzzer to start from something that is read to its end.
func seedFiles(f *testing.F) [][]byte {
	f.Helper()
	if !testenv.Has(testenv.Tool("gcc")) {
		return nil
	}
	dir := f.TempDir()
	src := filepath.Join(dir, "tiny.c")
	const tiny = `static inline __attribute__((always_inline)) int in(int x) { return x * 7; }
		__attribute__((noinline)) int f(int x) { char a[x]; a[x-1] = 1; return in(a[0]); }
		void _start(void) { f(3); for (;;) ; }`
	if err := os.WriteFile(src, []byte(tiny), 0o600); err != nil {
		f.Fatal(err)
	}
	var all [][]byte
	for _, args := range [][]string{{"-g", "-O1"}, {"-g", "-O1", "-gdwarf-4"}, {"-g", "-O1", "-gz"}, {"-O2", "-s"}} {
		bin := filepath.Join(dir, "tiny")
		args = append(args, "-nostdlib", "-static", "-Wl,-z,noseparate-code", "-o", bin, src)
		if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
			f.Fatalf("gcc: %v\n%s", err, out)
		}
		b, err := os.ReadFile(bin)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}
