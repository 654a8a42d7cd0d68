// Package testenv is the one place where a test may be skipped.
//
// A test states what it cannot do without; the package looks whether the
// machine has it:
//
//	func TestSpinExits(t *testing.T) {
//		testenv.Need(t, testenv.HardwareKVM, testenv.Tracefs)
//		…
//	}
//
// A skip is a claim about the machine, and claims are checked. The environment
// variable CLOISTER_LANE names the lane that runs; a lane is a promise that some
// requirements are met (see the table in lane.go). In a lane that promises a
// requirement its absence fails the test; elsewhere it skips, with one line
//
//	testenv: skip REQUIREMENT: reason
//
// from which internal/testenv/cmd/lanes makes the table at the end of `make test`.
//
// Invariants:
//
//  1. Nothing outside this package calls Skip, Skipf or SkipNow.
//  2. A requirement is probed at most once in a process, so that every test of
//     one run gets the same answer.
//  3. A probe changes nothing on the machine: it opens, reads and closes.
//  4. A reason is one line and names what was looked at.
//
// Alternatives rejected: build tags per lane (a test that is never compiled rots,
// and a missing tag looks like a pass); one environment variable per feature (nobody
// sets them all, so the default decides what is tested); skipping below a declared
// kernel version as cilium/ebpf does (our requirements are about the machine, and
// two kernels of one version differ in the only thing that counts, the KVM back end).
package testenv
