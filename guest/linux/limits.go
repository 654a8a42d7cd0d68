package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// rlimNlimits is RLIM_NLIMITS (include/uapi/asm-generic/resource.h).
const rlimNlimits = 16

// maxCPUs bounds the processors that a guest sees.
const maxCPUs = 1024

// limits are the resource limits. Only RLIMIT_NOFILE is enforced here; the others are the host's at
// the start and are remembered.
type limits struct {
	r        [rlimNlimits]unix.Rlimit
	fsize    bool // the host limits the size of files: EFBIG comes with SIGXFSZ
	affinity []byte
	policy   int32
	priority int32
	nice     int32
}

const (
	softNofile = 1024  // INR_OPEN_CUR: the engine's own runtime has raised the host's
	hardNofile = 65536 // bounds what the descriptor table can cost
	ownFDs     = 256   // descriptors that the engine keeps for itself
	stackLimit = 8 << 20
)

func hostLimits() limits {
	var l limits
	for i := range l.r {
		if unix.Getrlimit(i, &l.r[i]) != nil {
			l.r[i] = unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		}
	}
	host := l.r[unix.RLIMIT_NOFILE].Max
	if host > 2*ownFDs {
		host -= ownFDs
	}
	hard := min(host, hardNofile)
	l.r[unix.RLIMIT_NOFILE] = unix.Rlimit{Cur: min(softNofile, hard), Max: hard}
	// getpriority(2): the system call answers 20 - nice.
	if prio, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		l.nice = int32(20 - prio)
	}
	if attr, err := unix.SchedGetAttr(0, 0); err == nil {
		l.policy, l.priority = int32(attr.Policy), int32(attr.Priority)
	}
	l.fsize = l.r[unix.RLIMIT_FSIZE].Cur != unix.RLIM_INFINITY
	l.r[unix.RLIMIT_STACK] = unix.Rlimit{Cur: stackLimit, Max: unix.RLIM_INFINITY}
	return l
}

// nofile is one more than the highest descriptor that may be allocated.
func (l *limits) nofile() uint64 { return l.r[unix.RLIMIT_NOFILE].Cur }

func sysGetrlimit(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) >= rlimNlimits {
		return 0, unix.EINVAL
	}
	return 0, put(k, a[1], &k.lim.r[uint32(a[0])])
}

func sysSetrlimit(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var lim unix.Rlimit
	if errno := get(k, a[1], &lim); errno != 0 {
		return 0, errno
	}
	return 0, k.setLimit(a[0], lim)
}

func (k *Kernel) setLimit(which uint64, lim unix.Rlimit) unix.Errno {
	i := uint32(which)
	switch {
	case i >= rlimNlimits || lim.Cur > lim.Max:
		return unix.EINVAL
	case lim.Max > k.lim.r[i].Max:
		return unix.EPERM
	}
	k.lim.r[i] = lim
	return 0
}

func sysPrlimit64(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var lim unix.Rlimit
	if a[2] != 0 {
		if errno := get(k, a[2], &lim); errno != 0 {
			return 0, errno
		}
	}
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	if uint32(a[1]) >= rlimNlimits {
		return 0, unix.EINVAL
	}
	old := k.lim.r[uint32(a[1])]
	if a[2] != 0 {
		if errno := k.setLimit(a[1], lim); errno != 0 {
			return 0, errno
		}
	}
	if a[3] != 0 {
		return 0, put(k, a[3], &old)
	}
	return 0, 0
}

func sysSysinfo(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, errnoOf(err)
	}
	rss, total := k.mem.Usage()
	if k.cfg.MemoryLimit != 0 {
		total = k.cfg.MemoryLimit
	}
	guest := unix.Sysinfo_t{
		Uptime: si.Uptime, Loads: si.Loads, Totalram: total, Freeram: total - min(rss, total), Procs: 1, Unit: 1,
	}
	return 0, put(k, a[0], &guest)
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
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	mask := k.lim.affinity
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
	if !k.isSelf(a[0]) {
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
	k.lim.affinity = mask
	return 0, 0
}

func sysGetcpu(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[0] != 0 {
		if errno := k.store32(a[0], uint32(k.cfg.CPU)); errno != 0 {
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
	switch {
	case int32(a[0]) < 0:
		return 0, unix.EINVAL
	case !k.isSelf(a[0]):
		return 0, unix.ESRCH
	}
	return uint64(k.lim.policy), 0
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
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	return 0, k.schedule(policy, int32(prio))
}

// schedule remembers what the guest asked for. The guest has its core to itself: the policy of the
// vCPU's host thread is the user's choice, not the program's.
func (k *Kernel) schedule(policy, prio int32) unix.Errno {
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
	k.lim.policy, k.lim.priority = policy, prio
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
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	return 0, k.schedule(k.lim.policy, int32(prio))
}

func sysSchedGetparam(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[1] == 0 || int32(a[0]) < 0 {
		return 0, unix.EINVAL
	}
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	return 0, k.store32(a[1], uint32(k.lim.priority))
}

func sysSchedRRGetInterval(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	switch {
	case int32(a[0]) < 0:
		return 0, unix.EINVAL
	case !k.isSelf(a[0]):
		return 0, unix.ESRCH
	}
	// RR_TIMESLICE of the kernel is 100 ms; a FIFO task has none.
	ts := unix.NsecToTimespec(int64(100 * time.Millisecond))
	if k.lim.policy == unix.SCHED_FIFO {
		ts = unix.Timespec{}
	}
	return 0, put(k, a[1], &ts)
}

func sysSchedYield(_ *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return 0, 0 }

func sysGetpriority(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) > unix.PRIO_USER {
		return 0, unix.EINVAL
	}
	if uint32(a[0]) == unix.PRIO_PROCESS && !k.isSelf(a[1]) {
		return 0, unix.ESRCH
	}
	return uint64(20 - k.lim.nice), 0
}

func sysSetpriority(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) > unix.PRIO_USER {
		return 0, unix.EINVAL
	}
	if uint32(a[0]) == unix.PRIO_PROCESS && !k.isSelf(a[1]) {
		return 0, unix.ESRCH
	}
	nice := min(max(int32(a[2]), -20), 19)
	if nice < k.lim.nice && k.proc.euid != 0 {
		return 0, unix.EACCES
	}
	k.lim.nice = nice
	return 0, 0
}

// sysMembarrier: with one thread every barrier has happened when the call returns.
func sysMembarrier(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const query, global, expedited, register = 0, 1, 8, 16 // include/uapi/linux/membarrier.h
	if uint32(a[1]) != 0 {
		return 0, unix.EINVAL
	}
	switch uint32(a[0]) {
	case query:
		return global | expedited | register, 0
	case global:
		return 0, 0
	case register:
		k.proc.expedited = true
		return 0, 0
	case expedited:
		if !k.proc.expedited {
			return 0, unix.EPERM
		}
		return 0, 0
	}
	return 0, unix.EINVAL
}

func sysCapget(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	version, errno := k.load32(a[0])
	if errno != 0 {
		return 0, errno
	}
	words := 2
	switch version {
	case unix.LINUX_CAPABILITY_VERSION_1:
		words = 1
	case unix.LINUX_CAPABILITY_VERSION_2, unix.LINUX_CAPABILITY_VERSION_3:
	default:
		if errno := k.store32(a[0], unix.LINUX_CAPABILITY_VERSION_3); errno != 0 {
			return 0, errno
		}
		if a[1] == 0 {
			return 0, 0
		}
		return 0, unix.EINVAL
	}
	pid, errno := k.load32(a[0] + 4)
	switch {
	case errno != 0:
		return 0, errno
	case int32(pid) < 0:
		return 0, unix.EINVAL
	case !k.isSelf(uint64(pid)):
		return 0, unix.ESRCH
	case a[1] == 0:
		return 0, unix.EFAULT
	}
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return 0, errnoOf(err)
	}
	return 0, k.copyOut(a[1], bytesOf(&data)[:12*words])
}

func sysGetrandom(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[2]))
	if flags&^(unix.GRND_NONBLOCK|unix.GRND_RANDOM|unix.GRND_INSECURE) != 0 ||
		flags&(unix.GRND_INSECURE|unix.GRND_RANDOM) == unix.GRND_INSECURE|unix.GRND_RANDOM {
		return 0, unix.EINVAL
	}
	p, errno := k.buffer(a[0], a[1], true)
	if errno != 0 {
		return 0, errno
	}
	const step = 4 << 20 // some milliseconds of the host's generator
	done := 0
	for done < len(p) {
		n, errno := getrandom(p[done:min(len(p), done+step)], flags|unix.GRND_NONBLOCK)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			if done > 0 {
				break
			}
			return 0, errno
		}
		done += n
		if done < len(p) && k.interrupted() {
			break
		}
	}
	return uint64(done), 0
}
