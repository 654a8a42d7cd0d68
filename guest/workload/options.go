package workload

import (
	"flag"
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
)

func spinOptions(fs *flag.FlagSet) fill {
	seal := fs.Bool("seal", false, "isolate while the loop runs")
	count := fs.Uint64("count", 0, "end after `N` rounds (0: never)")
	write := fs.Bool("write", false, "write one line first, sealed or not: a break that a budget can forbid")
	return func(m *memory, _ uint64) error {
		p := &m.params
		p.Seal, p.Count = word(*seal), *count
		if *write {
			p.Write = uint64(copy(p.Scratch[:], "@spin\n"))
		}
		return nil
	}
}

func jitterOptions(fs *flag.FlagSet) fill {
	common := measureOptions(fs, 100_000)
	return func(m *memory, hz uint64) error {
		m.record.Kind = abi.GapKindLoop
		return common(m, hz)
	}
}

func cyclicOptions(fs *flag.FlagSet) fill {
	common := measureOptions(fs, 10)
	period := fs.Duration("period", time.Millisecond, "time between two wake-ups, at least 1us (`DURATION`)")
	return func(m *memory, hz uint64) error {
		if *period < time.Microsecond {
			return fmt.Errorf("--period %v: the loop itself takes a good part of it; give 1us or more", *period)
		}
		var err error
		if m.record.Period, err = cycles("period", *period, hz); err != nil {
			return err
		}
		m.record.Kind = abi.GapKindCyclic
		return common(m, hz)
	}
}

// sealOption declares --seal, which is the default, and --no-seal.
func sealOption(fs *flag.FlagSet) *bool {
	seal := fs.Bool("seal", true, "isolate while the loop runs")
	fs.BoolFunc("no-seal", "do not isolate", func(s string) error {
		no, err := strconv.ParseBool(s)
		*seal = !no
		return err
	})
	return seal
}

// measureOptions declares what @jitter and @cyclic have in common.
func measureOptions(fs *flag.FlagSet, warm uint64) fill {
	seal := sealOption(fs)
	threshold := fs.Duration("threshold", time.Microsecond, "a pass this long, or a wake-up this late, is a gap (`DURATION`)")
	length := fs.Duration("for", 0, "end after `DURATION` (0: never)")
	passes := fs.Uint64("passes", 0, "end after `N` passes (0: never)")
	warmUp := fs.Uint64("warm-up", warm, "make `N` passes before the record begins")
	dump := fs.Bool("dump", false, "write the raw record to standard output at the end")
	return func(m *memory, hz uint64) error {
		p, r := &m.params, &m.record
		*r = abi.GapRecord{Magic: abi.GapMagic, Kind: r.Kind, Period: r.Period, Min: ^uint64(0)}
		p.Seal, p.Dump, p.Passes, p.Warm = word(*seal), word(*dump), *passes, *warmUp
		var err error
		if r.Threshold, err = cycles("threshold", *threshold, hz); err != nil {
			return err
		}
		if r.Threshold == 0 {
			return fmt.Errorf("--threshold %v: shorter than one TSC cycle: every pass would be a gap", *threshold)
		}
		if p.Cycles, err = cycles("for", *length, hz); err != nil {
			return err
		}
		if *length > 0 && p.Cycles == 0 {
			return fmt.Errorf("--for %v: shorter than one TSC cycle", *length)
		}
		return nil
	}
}

// cycles converts the value d of an option to TSC cycles, rounded down.
func cycles(option string, d time.Duration, hz uint64) (uint64, error) {
	if d < 0 {
		return 0, fmt.Errorf("--%s %v: must not be negative", option, d)
	}
	if d == 0 {
		return 0, nil
	}
	if hz == 0 {
		return 0, fmt.Errorf("--%s %v: the frequency of the TSC is not known, so it has no length in cycles", option, d)
	}
	hi, lo := bits.Mul64(uint64(d), hz)
	if hi >= uint64(time.Second) {
		return 0, fmt.Errorf("--%s %v: more cycles than the TSC counts", option, d)
	}
	n, _ := bits.Div64(hi, lo, uint64(time.Second))
	if n >= 1<<62 { // the programs add it to a TSC
		return 0, fmt.Errorf("--%s %v: more cycles than the TSC counts", option, d)
	}
	return n, nil
}

func word(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
