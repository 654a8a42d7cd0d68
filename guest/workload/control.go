package workload

import (
	"encoding/binary"
	"flag"
	"fmt"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// ControlAddr is where @control-loop keeps its ControlRecord.
const ControlAddr = RecordAddr + recordPages*abi.Page

// ControlMagic marks a ControlRecord ("CLOICTRL").
const ControlMagic = 0x4c525443_494f4c43

// ControlKept is how many changes of its output @control-loop remembers: the latest ones.
const ControlKept = 64

// ControlRecord is what @control-loop writes of itself while it runs. A reader loads Changes before it copies History, whose entry n is at n modulo
// ControlKept (docs/ordering.md, O9). Times are TSC cycles.
type ControlRecord struct {
	Waits uint32 // not 0 while a patch waits for the safe point
	_     [15]uint32

	Magic  uint64 // ControlMagic
	Period uint64 // between two periods
	Work   uint64 // from the beginning of a period to its end
	Log    uint64 // a line is written after so many periods; 0: only at the end
	Until  uint64 // periods to the next line
	Sample int64  // what filter is given

	Begin, End              int64 // version of filter at both ends of the latest period
	Latest, Output, Version int64 // number of the latest period, its output, its version at the end

	Changes                uint64 // of Output or Version; the first period is one
	Periods, Missed, Mixed uint64 // made; not done when the next one was due; with two versions
	Lost                   uint64 // changes that History no longer holds, set at the end

	// Texts with % for a number, NUL-terminated; Digits and Buffer take them on their way out.
	Line, Summary, Gone [64]byte
	Digits              [24]byte
	Buffer              [160]byte
	_                   [8]byte

	History [ControlKept]ControlChange
}

// ControlChange is the first period with another output, or another version of filter, than the one before.
type ControlChange struct {
	Period, Output, Version int64
	Due                     uint64 // when the period was due
}

// DecodeControl reads a ControlRecord from a program's memory at ControlAddr. The error says that there is none. The numbers are the guest's word.
func DecodeControl(b []byte) (ControlRecord, error) {
	var r ControlRecord
	if _, err := binary.Decode(b, binary.LittleEndian, &r); err != nil {
		return ControlRecord{}, fmt.Errorf("record of @control-loop: %d bytes, want %d", len(b), binary.Size(r))
	}
	if r.Magic != ControlMagic {
		return ControlRecord{}, fmt.Errorf("record of @control-loop: magic %#x, want %#x: no record is there", r.Magic, uint64(ControlMagic))
	}
	return r, nil
}

// rateLimit is the initial value of the site rate.limit.
const rateLimit = 1000

func controlOptions(fs *flag.FlagSet) fill {
	seal := sealOption(fs)
	period := fs.Duration("period", 10*time.Millisecond, "time between two periods, at least 10us (`DURATION`)")
	work := fs.Duration("work", 0, "time from a period's beginning to its end (`DURATION`; 0: a tenth of the period)")
	length := fs.Duration("for", 0, "end after `DURATION` (0: never)")
	count := fs.Uint64("count", 0, "end after `N` periods (0: never)")
	log := fs.Uint64("log-every", 0, "write a line after every `N` periods: a break (0: only at the end)")
	points := fs.Bool("safe-points", true, "declare the end of a period a safe point")
	return func(m *memory, hz uint64) error {
		if *period < 10*time.Microsecond {
			return fmt.Errorf("--period %v: the loop itself takes a good part of it; give 10us or more", *period)
		}
		if *work == 0 {
			*work = *period / 10
		}
		if *work >= *period {
			return fmt.Errorf("--work %v: must be less than --period %v", *work, *period)
		}
		c := &ControlRecord{Magic: ControlMagic, Log: *log, Until: *log, Sample: 100}
		copy(c.Line[:], "period %: output % (version %)\n")
		copy(c.Summary[:], "@control-loop: % periods, % missed, % mixed\n")
		copy(c.Gone[:], "% earlier changes are not kept\n")
		var err error
		if c.Period, err = cycles("period", *period, hz); err != nil {
			return err
		}
		if c.Work, err = cycles("work", *work, hz); err != nil {
			return err
		}
		if m.params.Cycles, err = cycles("for", *length, hz); err != nil {
			return err
		}
		if *length > 0 && m.params.Cycles == 0 {
			return fmt.Errorf("--for %v: shorter than one TSC cycle", *length)
		}
		m.params.Seal, m.params.Passes = word(*seal), *count
		m.control = c
		m.patchable = &patchable{functions: []int{8}, sites: []site{
			{name: "rate.limit", kind: abi.SiteImm, label: 2, size: 5, offset: 1, width: 4},
			{name: "output.off", kind: abi.SiteBranch, label: 3, size: 5, target: 4},
		}}
		if *points {
			m.patchable.word = ControlAddr
		}
		return nil
	}
}
