package linux

import (
	"golang.org/x/sys/unix"
)

// rlimNlimits is RLIM_NLIMITS (include/uapi/asm-generic/resource.h).
const rlimNlimits = 16

// maxCPUs bounds the processors that a guest sees.
const maxCPUs = 1024

// limits are the resource limits. Only RLIMIT_NOFILE is enforced here; the others are the host's at
// the start and are remembered.
type limits struct {
	r     [rlimNlimits]unix.Rlimit
	fsize bool     // the host limits the size of files: EFBIG comes with SIGXFSZ
	start schedule // of the first task
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
		l.start.nice = int32(20 - prio)
	}
	if attr, err := unix.SchedGetAttr(0, 0); err == nil {
		l.start.policy, l.start.priority = int32(attr.Policy), int32(attr.Priority)
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
	vec, errno := k.buffer(a[0], a[1], true)
	if errno != 0 {
		return 0, errno
	}
	p := vec[0]          // what comes behind it would be a fault, after so many bytes
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
