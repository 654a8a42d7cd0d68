package bare

import (
	"slices"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// place puts a thread that is not sealed where the rules of --cpu and --place want it. A thread is placed when it is
// first seen, and again when its name has changed; where the program moves it meanwhile it stays.
func (r *run) place(t *thread, born bool) {
	want, had := r.b.Place(int(t.counts.ID), t.name), t.cpu()
	switch {
	case want == had:
		if born && want < 0 {
			r.toOthers(t.tid)
		}
		return
	case had < 0 && t.counts.Seals > 0:
		// The interrupts of its sealed intervals were not counted: a core now would make them look like none.
		r.warn("thread %d (%s) gets no core: it was sealed before its name said so; name it before it is sealed", t.tid, breaks.ThreadName(t.name))
		return
	}
	if err := r.moveTo(t, want); err != nil && r.alive(t) {
		r.warn("place thread %d (%s): %v", t.tid, breaks.ThreadName(t.name), err)
	}
}

// moveTo gives a thread a core of its own, or with -1 those that are nobody's. Its own figures go on, those of the
// core it leaves end here, those of the one it gets begin.
func (r *run) moveTo(t *thread, cpu int) error {
	cpus := r.b.Keep
	if cpu >= 0 {
		cpus = []int{cpu}
	}
	if ok, err := cores.Put(t.tid, cpus); err != nil || !ok {
		return err
	}
	if r.b.FIFO > 0 {
		if err := unix.SchedSetAttr(t.tid, priority(r.b.FIFO, cpu >= 0), 0); err != nil {
			return err
		}
	}
	own, err := readThread(threadDir(r.p.pid, t.tid))
	if err != nil {
		return err
	}
	before, after := figures{}, figures{}
	before.add(own)
	after.add(own)
	for _, c := range []struct {
		cpu int
		to  figures
	}{{t.cpu(), before}, {cpu, after}} {
		if c.cpu < 0 {
			continue
		}
		core, err := readCore("/", c.cpu)
		if err != nil {
			return err
		}
		c.to.add(core)
	}
	t.moved(cpu, before, after)
	return nil
}

// priority is SCHED_FIFO at that priority, or the ordinary class. A thread that one with a core of its own makes must
// not inherit it: on this core it would wait for ever.
func priority(fifo int, real bool) *unix.SchedAttr {
	a := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if real {
		a.Policy, a.Priority, a.Flags = unix.SCHED_FIFO, uint32(fifo), unix.SCHED_FLAG_RESET_ON_FORK
	}
	return a
}

func (r *run) alive(t *thread) bool { return threadState(r.p.pid, t.tid) != 0 }

// rename looks at a thread's name, and places the thread anew if it has another one. A sealed one stays where it is
// until it is not.
func (r *run) rename(t *thread) {
	if t == r.main && r.b.BuiltIn {
		return // the kernel has the number of a descriptor
	}
	name := threadName(r.p.pid, t.tid)
	if name == "" {
		return // it has ended
	}
	t.name = name
	if t.counts.Sealed == 0 && t.name != t.placedAs {
		t.placedAs = t.name
		r.place(t, false)
	}
}

// toOthers moves a thread to the housekeeping CPUs if it is still where it was born, on a core that another one
// owns. One that the program has placed itself stays there.
func (r *run) toOthers(tid int) {
	var have unix.CPUSet
	err := unix.SchedGetaffinity(tid, &have)
	if err == nil && have.Count() == 1 && slices.ContainsFunc(r.b.Owned, have.IsSet) {
		_, err = cores.Put(tid, r.b.Keep)
	}
	if err != nil && err != unix.ESRCH {
		r.warn("keep thread %d on CPUs %s: %v", tid, cores.Format(r.b.Keep), err)
	}
}
