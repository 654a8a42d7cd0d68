package vdso

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Reading is one look at a host clock.
type Reading struct {
	TSC  uint64 // cycles, the middle of the look
	NS   int64  // what the clock said
	Half uint64 // cycles: the clock was read within Half of TSC
}

// Host is where Clock gets the true time from. Its TSC must be the one that the guest reads.
type Host interface {
	// TSC reads the time stamp counter, after all earlier loads.
	TSC() uint64
	// Read looks at clock id (CLOCK_REALTIME and so on).
	Read(id int) (Reading, error)
	// Resolution gives what clock_getres says of CLOCK_MONOTONIC, in ns.
	Resolution() (int64, error)
}

// Kernel is the Host that asks this machine's kernel by system call.
type Kernel struct{}

// looks is the number of times that Read asks: the one with the shortest way there and back tells most.
const looks = 6

// TSC reads this CPU's counter.
func (Kernel) TSC() uint64 { return tsc() }

// Read gives the tightest of a few readings. It fails with the kernel's errno for unknown clocks.
func (Kernel) Read(id int) (Reading, error) {
	var best Reading
	for i := range looks {
		var ts [2]int64
		before, after, errno := bracket(uint64(id), &ts)
		if errno != 0 {
			return Reading{}, fmt.Errorf("read clock %d: %w", id, unix.Errno(-errno))
		}
		if after < before {
			return Reading{}, fmt.Errorf("read clock %d: the TSC went from %d to %d; this host's TSCs are not synchronised", id, before, after)
		}
		if half := (after-before)/2 + 1; i == 0 || half < best.Half {
			best = Reading{TSC: before + half, NS: ts[0]*1e9 + ts[1], Half: half}
		}
	}
	return best, nil
}

// Resolution asks clock_getres.
func (Kernel) Resolution() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read clock resolution: %w", err)
	}
	return ts.Nano(), nil
}

// tsc is LFENCE, RDTSC.
func tsc() uint64

// bracket reads a clock by system call, and the TSC right before and after. It is a few hundred
// nanoseconds long, so it does not tell the scheduler.
//
//go:noescape
func bracket(clock uint64, ts *[2]int64) (before, after uint64, errno int64)
