package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ringLimit is how much longer than the C prototype's a call by the ring may take.
const ringLimit = 1.5

// ringed are the calls that are timed: one that has one answer, and one for which either server makes a host call.
var ringed = []struct {
	nr   int
	what string
}{{unix.SYS_GETPPID, "system call by the ring, getppid"}, {unix.SYS_GETRUSAGE, "system call by the ring, getrusage"}}

// ringCalls times a sealed guest's system call that a housekeeping CPU makes without an exit (--syscalls=ring), against the
// same stub of the same guest with a loop in C behind it (floor -r).
func (b *bench) ringCalls() error {
	report := b.path("report.json")
	for _, c := range ringed {
		left := 0.0
		args := []string{b.path("exits"), fmt.Sprint(c.nr), fmt.Sprint(calls), "sealed"}
		p, err := b.collect(
			func() ([]byte, error) {
				out, err := b.cloister(patience, append([]string{"--quiet", "--cpu", fmt.Sprint(b.cpu), "--syscalls=ring", "--report", report, "--"}, args...)...)
				if err != nil {
					return nil, err
				}
				n, err := sealedSyscalls(report)
				left += n
				return out, err
			},
			func() ([]byte, error) {
				return b.floor(0, false, append([]string{"-r", fmt.Sprint(b.housekeeping()), "run"}, args...)...)
			})
		if err != nil {
			return err
		}
		b.report(c.what, p, limits{ringLimit, none, none})
		b.rows = append(b.rows, Row{What: c.what + ", exits", Ours: left, Unit: "exits", Limit: 0, N: b.rounds * calls})
	}
	return nil
}
