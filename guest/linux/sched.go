package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// schedule is what a task has asked for. It is remembered and answered; the host's own policy of a vCPU's thread
// is the run's choice (--fifo), the core is the run's and, by sched_setaffinity, the program's.
type schedule struct {
	policy   int32
	priority int32
	nice     int32
	affinity []byte // of virtual CPUs; nil: all
}

// realTime is the priority that s has among those who wait: 0 without a real-time policy.
func (s *schedule) realTime() int32 {
	if s.policy == unix.SCHED_FIFO || s.policy == unix.SCHED_RR {
		return s.priority
	}
	return 0
}

// of finds the task that a scheduling call names.
func (k *Kernel) of(id uint64) (*Task, unix.Errno) {
	if int32(id) < 0 {
		return nil, unix.EINVAL
	}
	if t := k.task(id); t != nil {
		return t, 0
	}
	return nil, unix.ESRCH
}

// cpuMask is the guest's processors as a bit mask, in whole words.
func (k *Kernel) cpuMask() []byte {
	mask := make([]byte, (k.cfg.CPUs+63)/64*8)
	for i := range k.cfg.CPUs {
		mask[i/8] |= 1 << (i % 8)
	}
	return mask
}

func sysSchedGetaffinity(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	size := uint64(uint32(a[1]))
	if size*8 < uint64(k.cfg.CPUs) || size&7 != 0 {
		return 0, unix.EINVAL
	}
	t := k.task(a[0])
	if t == nil {
		return 0, unix.ESRCH
	}
	mask := t.sched.affinity
	if mask == nil {
		mask = k.cpuMask()
	}
	mask = mask[:min(uint64(len(mask)), size)]
	return uint64(len(mask)), k.copyOut(a[2], mask)
}

func sysSchedSetaffinity(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	mask := k.cpuMask()
	want := make([]byte, len(mask))
	if errno := k.copyIn(a[2], want[:min(uint64(uint32(a[1])), uint64(len(want)))]); errno != 0 {
		return 0, errno
	}
	t := k.task(a[0])
	if t == nil {
		return 0, unix.ESRCH
	}
	some := byte(0)
	for i := range mask {
		mask[i] &= want[i]
		some |= mask[i]
	}
	if some == 0 {
		return 0, unix.EINVAL
	}
	if k.cfg.Move != nil {
		var cpus []int
		for i := range k.cfg.CPUs {
			if mask[i/8]&(1<<(i%8)) != 0 {
				cpus = append(cpus, i)
			}
		}
		if errno := k.cfg.Move(t, cpus); errno != 0 {
			return 0, errno
		}
	}
	t.sched.affinity = mask
	return 0, 0
}

func sysGetcpu(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	cpu := k.cfg.CPU
	if k.cfg.CPUOf != nil {
		cpu = k.cfg.CPUOf(t)
	}
	if a[0] != 0 {
		if errno := k.store32(a[0], uint32(cpu)); errno != 0 {
			return 0, errno
		}
	}
	if a[1] != 0 {
		return 0, k.store32(a[1], 0)
	}
	return 0, 0
}

func schedPriority(policy uint64, low, high uint64) (uint64, unix.Errno) {
	switch int32(policy) {
	case unix.SCHED_FIFO, unix.SCHED_RR:
		return high, 0
	case unix.SCHED_NORMAL, unix.SCHED_BATCH, unix.SCHED_IDLE, unix.SCHED_DEADLINE:
		return low, 0
	}
	return 0, unix.EINVAL
}

func sysSchedPriorityMax(_ *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return schedPriority(a[0], 0, 99)
}

func sysSchedPriorityMin(_ *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return schedPriority(a[0], 0, 1)
}

func sysSchedGetscheduler(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	t, errno := k.of(a[0])
	if errno != 0 {
		return 0, errno
	}
	return uint64(t.sched.policy), 0
}

func sysSchedSetscheduler(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const resetOnFork = 0x40000000
	policy := int32(uint32(a[1]) &^ resetOnFork)
	if a[2] == 0 || int32(a[0]) < 0 || int32(a[1]) < 0 {
		return 0, unix.EINVAL
	}
	prio, errno := k.load32(a[2])
	if errno != 0 {
		return 0, errno
	}
	t := k.task(a[0])
	if t == nil {
		return 0, unix.ESRCH
	}
	return 0, k.schedule(t, policy, int32(prio))
}

// schedule remembers what the guest asked for.
func (k *Kernel) schedule(t *Task, policy, prio int32) unix.Errno {
	switch policy {
	case unix.SCHED_FIFO, unix.SCHED_RR:
		if prio < 1 || prio > 99 {
			return unix.EINVAL
		}
		k.warn("real-time scheduling is asked for by the guest: it is recorded only; the vCPU's own policy is set by cloister run --fifo")
	case unix.SCHED_NORMAL, unix.SCHED_BATCH, unix.SCHED_IDLE:
		if prio != 0 {
			return unix.EINVAL
		}
	default:
		return unix.EINVAL
	}
	t.sched.policy, t.sched.priority = policy, prio
	return 0
}

func sysSchedSetparam(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[1] == 0 || int32(a[0]) < 0 {
		return 0, unix.EINVAL
	}
	prio, errno := k.load32(a[1])
	if errno != 0 {
		return 0, errno
	}
	t := k.task(a[0])
	if t == nil {
		return 0, unix.ESRCH
	}
	return 0, k.schedule(t, t.sched.policy, int32(prio))
}

func sysSchedGetparam(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[1] == 0 || int32(a[0]) < 0 {
		return 0, unix.EINVAL
	}
	t := k.task(a[0])
	if t == nil {
		return 0, unix.ESRCH
	}
	return 0, k.store32(a[1], uint32(t.sched.priority))
}

func sysSchedRRGetInterval(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	t, errno := k.of(a[0])
	if errno != 0 {
		return 0, errno
	}
	// RR_TIMESLICE of the kernel is 100 ms; a FIFO task has none.
	ts := unix.NsecToTimespec(int64(100 * time.Millisecond))
	if t.sched.policy == unix.SCHED_FIFO {
		ts = unix.Timespec{}
	}
	return 0, put(k, a[1], &ts)
}

func sysSchedYield(_ *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return 0, 0 }

func sysGetpriority(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) > unix.PRIO_USER {
		return 0, unix.EINVAL
	}
	if uint32(a[0]) == unix.PRIO_PROCESS {
		if t = k.task(a[1]); t == nil {
			return 0, unix.ESRCH
		}
	}
	return uint64(20 - t.sched.nice), 0
}

func sysSetpriority(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) > unix.PRIO_USER {
		return 0, unix.EINVAL
	}
	if uint32(a[0]) == unix.PRIO_PROCESS {
		if t = k.task(a[1]); t == nil {
			return 0, unix.ESRCH
		}
	}
	nice := min(max(int32(a[2]), -20), 19)
	if nice < t.sched.nice && k.proc.euid != 0 {
		return 0, unix.EACCES
	}
	t.sched.nice = nice
	return 0, 0
}

// sysMembarrier: whoever is in a call here is ordered by the kernel's lock; tasks in the guest are stopped once.
func sysMembarrier(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	// include/uapi/linux/membarrier.h
	const (
		query, global                   = 0, 1
		globalExpedited, registerGlobal = 2, 4
		expedited, registerExpedited    = 8, 16
		syncCore, registerSyncCore      = 32, 64
		all                             = global | globalExpedited | registerGlobal | expedited | registerExpedited | syncCore | registerSyncCore
	)
	if uint32(a[1]) != 0 {
		return 0, unix.EINVAL
	}
	cmd := uint64(uint32(a[0]))
	switch cmd {
	case query:
		return all, 0
	case registerGlobal, registerExpedited, registerSyncCore:
		k.proc.barriers |= cmd
		return 0, 0
	case expedited, syncCore:
		if k.proc.barriers&(cmd<<1) == 0 {
			return 0, unix.EPERM
		}
	case global, globalExpedited:
	default:
		return 0, unix.EINVAL
	}
	if k.cfg.Barrier != nil && len(k.tasks) > 1 {
		k.cfg.Barrier()
	}
	return 0, 0
}
