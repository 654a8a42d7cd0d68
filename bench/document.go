package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"golang.org/x/sys/unix"
)

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// line is the first line of a file that begins with prefix, without it.
func line(name, prefix string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			return strings.Trim(rest, ": \t\n")
		}
	}
	return ""
}

// howToRead says what the table cannot.
const howToRead = `How to read it:

- Rows without SCHED_FIFO share the core with whatever else runs there. On a busy machine their p99 and
  p99.9 are slices of the scheduler's, on both sides, and tell of the neighbours; rows with SCHED_FIFO do not.
- "Under load": a goroutine replaces the nodes of a heap of half a million without pause, at the default GOGC. It
  runs inside Cloister's process; for the floor it is a process of its own. Both stay off the guests' CPU.
- "Exit served by Go": the floor serves that call on its one thread; Cloister hands it to another core and back.
- "Threads": all of Cloister has the same two CPUs as the native program, for its helpers too. Times are those of the program, from before
  the first thread is made to after the last one has ended; 1/0.97 of native is the target. "Short tasks" are of some 1 ms; "long loops" are
  preempted by Go's runtime with signals every 10 ms, some 700 exits a second. "What N of the floor's exits take": that much of the difference
  is the back end's, whoever serves them; exits that the kernel serves by itself (interrupts, first touches) come to it.
- "Futex hand-over": from before the word is stored to behind the return of the other thread's wait, on another core.
- "System call by the ring" (--syscalls=ring): the floor is a loop in C behind the same stub of the same guest. On pvm SYSCALL
  itself is a switch to the hypervisor and back, on both sides.
- "Start to exit": the floor is one process and keeps no books; Cloister is two. The floor is never pinned.
- "Patch": eight bytes of a loop's code are exchanged, with all vCPUs stopped and serialised, and no record is written. The floor is a program in C with the same protocol over
  the same guest, which checks nothing; its stores are made by who patches, ours by the vCPU that stopped last (decision 0020; one site, no safe point). "A vCPU's pause" is from leaving the guest to entering it. "Deferred" is the store alone: what it costs not to be right.
- Rings: the floor is the same two programs, both native. The process on the other side runs on a housekeeping CPU and polls.
- The error of the clock is taken between readings of two cores, each within its own pair of TSC stamps.
`

// document is RESULTS.md.
func (b *bench) document() string {
	var w strings.Builder
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	nested := "no"
	if kvm.Nested("/") {
		nested = "yes: this machine is itself a guest, its absolute times are nobody else's"
	}
	isolated := line("/sys/devices/system/cpu/isolated", "")
	if isolated == "" {
		isolated = "none"
	}
	fmt.Fprintf(&w, "# Speed, as ratios in one run\n\nWritten by `go run ./bench %s`; bench/main.go says how each figure is taken. A ratio is Cloister over floor.\n\n", strings.Join(os.Args[1:], " "))
	for _, l := range [][2]string{
		{"CPU", line("/proc/cpuinfo", "model name")},
		{"CPUs", fmt.Sprintf("%d, isolated: %s; the guests' is CPU %d, in the default scheduling class where a row does not say SCHED_FIFO", runtime.NumCPU(), isolated, b.cpu)},
		{"kernel", kernel},
		{"KVM back end", string(kvm.DetectBackend("/"))},
		{"nested", nested},
		{"Go", runtime.Version()},
		{"date", b.started.UTC().Format("2006-01-02 15:04 MST")},
		{"took", time.Since(b.started).Round(time.Second).String()},
		{"load average after each section", strings.Join(b.loads, ", ") + " (about 1 is this bench alone; more is others on the same CPUs)"},
		{"rounds", fmt.Sprint(b.rounds)},
	} {
		fmt.Fprintf(&w, "- %s: %s\n", l[0], l[1])
	}
	w.WriteString("\n")
	if err := WriteTable(&w, b.rows); err != nil {
		fmt.Fprintln(&w, err)
	}
	w.WriteString("\n" + howToRead)
	for _, d := range b.details {
		w.WriteString("\n" + d)
	}
	// No path of this machine belongs into the repository.
	return strings.NewReplacer(b.dir+string(filepath.Separator), "", b.root+string(filepath.Separator), "").Replace(w.String())
}
