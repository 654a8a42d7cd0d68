package breaks

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

type kernelCase struct {
	name    string
	backend string
	returns map[Cause]uint64
	exits   uint64
	irq     uint64
	fixed   uint64
	emul    uint64
	want    map[Cause]uint64
	own     uint64 // exits of planned returns without a fixed toll
	why     string // part of it; empty: the books close
}

func (k kernelCase) book() *Book {
	b := &Book{}
	for c, n := range k.returns {
		b.Cause[c].Count = n
		b.Total += n
	}
	b.Kernel[KernelExits], b.Kernel[KernelIRQ] = k.exits, k.irq
	b.Kernel[KernelPageFixed], b.Kernel[KernelEmulation] = k.fixed, k.emul
	return b
}

// The figures under "study" are the deltas that were recorded on real KVM (docs/breaks.md, "The
// kernel's half"); where a row of the study gives exits without irq_exits, the missing figure is the
// smallest that the row allows.
var kernelCases = []kernelCase{
	{name: "study: 20000 OUT", backend: BackendPVM, returns: map[Cause]uint64{PIO: 20000},
		exits: 20103, irq: 101, emul: 20001, want: map[Cause]uint64{HostInterrupt: 101, Emulation: 1, KernelOther: 1}},
	{name: "study: 2000 OUT", backend: BackendSVM, returns: map[Cause]uint64{PIO: 2001},
		exits: 2013, irq: 12, want: map[Cause]uint64{HostInterrupt: 12}},
	{name: "study: 20000 CPUID", backend: BackendPVM,
		exits: 20096, irq: 95, emul: 20001, want: map[Cause]uint64{HostInterrupt: 95, Emulation: 20001}},
	{name: "study: 2000 CPUID", backend: BackendSVM,
		exits: 2009, irq: 9, emul: 2000, want: map[Cause]uint64{HostInterrupt: 9, Emulation: 2000}},
	{name: "study: 20000 MMIO writes", backend: BackendPVM, returns: map[Cause]uint64{MMIO: 20000},
		exits: 20000, emul: 20000},
	{name: "study: 2000 MMIO writes", backend: BackendSVM, returns: map[Cause]uint64{MMIO: 2000},
		exits: 2000, emul: 2000},
	{name: "study: busy loop", backend: BackendPVM,
		exits: 459, irq: 457, want: map[Cause]uint64{HostInterrupt: 457, KernelOther: 2}},
	{name: "study: busy loop", backend: BackendSVM,
		exits: 39, irq: 33, want: map[Cause]uint64{HostInterrupt: 33, KernelOther: 6}},
	{name: "study: first touch of 8000 pages", backend: BackendPVM,
		exits: 1000, fixed: 1000, want: map[Cause]uint64{PageFault: 1000}},
	{name: "study: 500 kicks", backend: BackendPVM, returns: map[Cause]uint64{Kick: 500},
		exits: 756, irq: 754, want: map[Cause]uint64{HostInterrupt: 754, KernelOther: 2}},

	{name: "measured: 1000 system calls", backend: BackendPVM, returns: map[Cause]uint64{Syscall: 1000},
		exits: 2019, irq: 19, emul: 1000, want: map[Cause]uint64{HostInterrupt: 19, Transit: 1000}},
	{name: "measured: 1000 INT3", backend: BackendPVM, returns: map[Cause]uint64{ExcBreakpoint: 1000},
		exits: 2006, irq: 6, emul: 1000, want: map[Cause]uint64{HostInterrupt: 6, Transit: 1000}},
	{name: "measured: 1000 UD2", backend: BackendPVM, returns: map[Cause]uint64{ExcInvalidOpcode: 1000},
		exits: 2051, irq: 51, emul: 1000, want: map[Cause]uint64{HostInterrupt: 51, Transit: 1000}},
	{name: "measured: 1000 INT 0x80", backend: BackendPVM, returns: map[Cause]uint64{ExcInvalidOpcode: 1000},
		exits: 2009, irq: 9, emul: 2000, want: map[Cause]uint64{HostInterrupt: 9, Transit: 1000}},
	{name: "measured: 1000 divisions by zero", backend: BackendPVM, returns: map[Cause]uint64{ExcDivide: 1000},
		exits: 2040, irq: 40, emul: 1000, want: map[Cause]uint64{HostInterrupt: 40, Transit: 1000}},
	{name: "measured: 1000 page faults of the guest", backend: BackendPVM, returns: map[Cause]uint64{ExcPageFault: 1000},
		exits: 2009, irq: 9, emul: 1000, want: map[Cause]uint64{HostInterrupt: 9, Transit: 1000}},
	{name: "measured: 1000 CLI", backend: BackendPVM, returns: map[Cause]uint64{ExcProtection: 1000},
		exits: 2017, irq: 17, emul: 2000, want: map[Cause]uint64{HostInterrupt: 17, Transit: 1000}},
	{name: "measured: 1000 #SS", backend: BackendPVM, returns: map[Cause]uint64{ExcStack: 1000},
		exits: 2004, irq: 4, emul: 1000, want: map[Cause]uint64{HostInterrupt: 4, Transit: 1000}},
	{name: "measured: 1000 CPUID, then OUT", backend: BackendPVM, returns: map[Cause]uint64{PIO: 1000},
		exits: 2017, irq: 17, emul: 2000, want: map[Cause]uint64{HostInterrupt: 17, Emulation: 1000}},
	{name: "measured: 1000 HLT in ring 0", backend: BackendPVM, returns: map[Cause]uint64{HLT: 1000}, exits: 1000, emul: 1000},
	{name: "measured: 1000 MMIO reads", backend: BackendPVM, returns: map[Cause]uint64{MMIO: 1000},
		exits: 1066, irq: 66, emul: 1000, want: map[Cause]uint64{HostInterrupt: 66}},
	{name: "measured: four NOPs in ring 0 before each of 1000 OUT", backend: BackendPVM, returns: map[Cause]uint64{PIO: 1000},
		exits: 1001, emul: 5000, want: map[Cause]uint64{Emulation: 4000}, why: "1001 exits, 3999 fewer"},

	{name: "a system call", backend: BackendPVM, returns: map[Cause]uint64{Syscall: 10},
		exits: 20, emul: 10, want: map[Cause]uint64{Transit: 10}},
	{name: "a system call", backend: BackendVMX, returns: map[Cause]uint64{Syscall: 10}, exits: 10},
	{name: "an exception", backend: BackendPVM, returns: map[Cause]uint64{ExcBreakpoint: 1},
		exits: 2, emul: 1, want: map[Cause]uint64{Transit: 1}},
	{name: "#UD, which SVM intercepts", backend: BackendSVM, returns: map[Cause]uint64{ExcInvalidOpcode: 1},
		exits: 2, emul: 1, want: map[Cause]uint64{Emulation: 1}},
	{name: "measured: INT3 whose delivery faults", backend: BackendSVM, returns: map[Cause]uint64{ExcBreakpoint: 1},
		exits: 15, irq: 1, fixed: 13, emul: 7, want: map[Cause]uint64{HostInterrupt: 1, PageFault: 13}},
	{name: "more decoded than faulted", backend: BackendSVM, returns: map[Cause]uint64{ExcBreakpoint: 1},
		exits: 4, fixed: 3, emul: 7, want: map[Cause]uint64{PageFault: 3, Emulation: 4}, why: "4 exits, 4 fewer"},
	{name: "decoded without an exception", backend: BackendSVM, returns: map[Cause]uint64{PIO: 1},
		exits: 14, fixed: 13, emul: 7, want: map[Cause]uint64{PageFault: 13, Emulation: 7}, why: "14 exits, 7 fewer"},
	{name: "sealing leaves no transit", backend: BackendPVM, returns: map[Cause]uint64{Seal: 2}, exits: 4, emul: 2},
	{name: "a stop's interrupt is the end", backend: BackendPVM, returns: map[Cause]uint64{End: 1}, exits: 1, irq: 1, own: 1},
	{name: "setup with and without an exit", backend: BackendSVM, returns: map[Cause]uint64{Setup: 3},
		exits: 4, irq: 1, fixed: 1, want: map[Cause]uint64{HostInterrupt: 1, PageFault: 1}, own: 2},
	{name: "nothing at all", backend: BackendVMX},

	{name: "fewer exits than returns", backend: BackendSVM, returns: map[Cause]uint64{Syscall: 10, ExcDivide: 1}, exits: 7, irq: 1,
		want: map[Cause]uint64{HostInterrupt: 1}, why: "7 exits, 5 fewer than the 12 that are accounted for: 11 returns, 0 transits, 1 irq_exits"},
	{name: "a transit is missing", backend: BackendPVM, returns: map[Cause]uint64{Syscall: 10}, exits: 19, emul: 10,
		why: "19 exits, 1 fewer than the 20"},
	{name: "no statistics", backend: "", returns: map[Cause]uint64{Syscall: 1}, exits: 5, irq: 5, why: "were not read"},
	{name: "a back end of tomorrow", backend: "tdx", exits: 5, irq: 5, why: `back end "tdx"`},
}

func TestKernelCauses(t *testing.T) {
	for _, k := range kernelCases {
		t.Run(k.backend+" "+k.name, func(t *testing.T) {
			got, ok, why := KernelCauses(k.book(), k.backend)
			for c, n := range got {
				if n != k.want[Cause(c)] {
					t.Errorf("%s: %d, want %d", Cause(c), n, k.want[Cause(c)])
				}
			}
			if ok != (k.why == "") || !strings.Contains(why, k.why) || ok != (why == "") {
				t.Errorf("ok %v, why %q; want %q", ok, why, k.why)
			}
			if !ok {
				return
			}
			// The identity that the kernel's half is about, written out once more and by hand.
			b := k.book()
			toll, _ := tolls(k.backend)
			exits := k.own + got[HostInterrupt] + got[PageFault] + got[Emulation] + got[KernelOther]
			for c := range toll {
				exits += b.Cause[c].Count * (toll[c].exits + toll[c].transits)
			}
			if exits != k.exits {
				t.Errorf("the parts add up to %d of %d exits", exits, k.exits)
			}
		})
	}
}

// A program that seals itself, computes, unseals and ends must show zero for the sealed half on every
// back end, though the call that unseals leaves the guest before the border.
func TestKernelCausesAtTheBorders(t *testing.T) {
	for _, backend := range []string{BackendPVM, BackendSVM, BackendVMX} {
		var call toll
		if table, ok := tolls(backend); ok {
			call = table[Seal]
		}
		cost := func(b *Book, n uint64) {
			b.Kernel[KernelExits] += n * (call.exits + call.transits)
			b.Kernel[KernelEmulation] += n * call.emulated
		}
		zero := func(name string, c *Counts, half int) {
			got, ok, why := c.KernelCauses(half, backend)
			if !ok || got != [NCause]uint64{} {
				t.Errorf("%s, %s, half %d: ok %v %s, %v", backend, name, half, ok, why, got)
			}
		}
		var c Counts
		c.Seals = 3
		c.Book[Open].Cause[Seal].Count = 6
		cost(&c.Book[Open], 3)
		cost(&c.Book[Sealed], 3)
		zero("three sealed intervals", &c, Open)
		zero("three sealed intervals", &c, Sealed)

		c = Counts{Seals: 1, SealedAt: 5}
		c.Book[Open].Cause[Seal].Count = 1
		cost(&c.Book[Open], 1)
		c.Book[Sealed].Cause[End].Count = 1
		c.Book[Sealed].Syscall[sysExitGroup].Count = 1
		cost(&c.Book[Sealed], 1)
		zero("exit_group while sealed", &c, Open)
		zero("exit_group while sealed", &c, Sealed)

		c = Counts{Seals: 1, SealedAt: 5}
		c.Book[Sealed].Cause[End].Count = 1
		c.Book[Sealed].Kernel[KernelExits], c.Book[Sealed].Kernel[KernelIRQ] = 1, 1
		zero("sealed at the start, stopped", &c, Sealed)

		c.Book[Sealed].Kernel[KernelExits]++
		if got, ok, _ := c.KernelCauses(Sealed, backend); !ok || got[KernelOther] != 1 {
			t.Errorf("%s: one exit too many is not seen: %v", backend, got)
		}
	}
}

func codeToll(backend string, c Cause) string {
	if slices.Contains(perhaps[:], c) {
		return "0-1/0-1"
	}
	table, _ := tolls(backend)
	x := table[c]
	return fmt.Sprintf("%d/%d", x.exits+x.transits, x.emulated)
}

// documentedToll reads the table of docs/breaks.md: rows "| causes | pvm | svm, vmx |".
func documentedToll(t *testing.T, doc []byte, backend string, c Cause) string {
	t.Helper()
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*`) \\| ([0-9/-]+) \\| ([0-9/-]+) \\|$").FindAllStringSubmatch(string(doc), -1) {
		for word := range strings.SplitSeq(row[1], ", ") {
			word = strings.Trim(word, "`")
			// The first row that fits: a cause by its name stands above its group.
			if word == c.String() || word == "exc-*" && strings.HasPrefix(c.String(), "exc-") {
				return row[map[string]int{BackendPVM: 2, BackendSVM: 3, BackendVMX: 3}[backend]]
			}
		}
	}
	return ""
}
