package linux

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// process is the identity of the guest's one process. User and group are the host's: what the guest
// opens is opened with them.
type process struct {
	uid, euid, gid, egid int
	pgid, sid            int
	tasks                int
	dumpable             uint64
	deathSig             uint64
	noNewPrivs           uint64
	keepCaps             uint64
	thpDisable           uint64
	timerSlack           uint64
	barriers             uint64 // membarrier's registrations
	status               uint64 // of the first task's exit
	persona              uint64
}

func newProcess(cfg *Config) process {
	p := process{
		uid: unix.Getuid(), euid: unix.Geteuid(), gid: unix.Getgid(), egid: unix.Getegid(),
		pgid: unix.Getpgrp(), sid: cfg.PID, dumpable: 1, timerSlack: 50000,
	}
	if sid, err := unix.Getsid(0); err == nil {
		p.sid = sid
	}
	return p
}

func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

func sysGetpid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno)  { return uint64(k.cfg.PID), 0 }
func sysGettid(_ *Kernel, t *Task, _ args) (uint64, unix.Errno)  { return uint64(t.ID), 0 }
func sysGetppid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return uint64(k.cfg.PPID), 0 }
func sysGetuid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno)  { return uint64(k.proc.uid), 0 }
func sysGeteuid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return uint64(k.proc.euid), 0 }
func sysGetgid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno)  { return uint64(k.proc.gid), 0 }
func sysGetegid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return uint64(k.proc.egid), 0 }
func sysGetpgrp(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return uint64(k.proc.pgid), 0 }

func sysGetresuid(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.putIDs(a, k.proc.uid, k.proc.euid)
}

func sysGetresgid(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.putIDs(a, k.proc.gid, k.proc.egid)
}

func (k *Kernel) putIDs(a args, real, effective int) unix.Errno {
	for i, id := range [3]int{real, effective, effective} {
		if errno := k.store32(a[i], uint32(id)); errno != 0 {
			return errno
		}
	}
	return 0
}

// sysSetids serves the set*uid and set*gid family: the identity is the engine's and stays. Asking for
// what is there already works, as programs that drop privileges they do not have expect.
func setIDs(group bool, count int) handler {
	return func(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
		real, effective := k.proc.uid, k.proc.euid
		if group {
			real, effective = k.proc.gid, k.proc.egid
		}
		for _, v := range a[:count] {
			if id := int32(v); id != -1 && int(uint32(v)) != real && int(uint32(v)) != effective {
				k.warn("the guest may not change its user or group: answered EPERM; start Cloister as that user")
				return 0, unix.EPERM
			}
		}
		return 0, 0
	}
}

// sysSetfsuid and its companion report the old identity and change nothing, as for an unprivileged caller.
func sysSetfsuid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return uint64(k.proc.euid), 0 }
func sysSetfsgid(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return uint64(k.proc.egid), 0 }

func sysGetgroups(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if int32(a[0]) < 0 {
		return 0, unix.EINVAL
	}
	groups, err := unix.Getgroups()
	if err != nil {
		return 0, errnoOf(err)
	}
	if a[0] == 0 {
		return uint64(len(groups)), 0
	}
	if len(groups) > int(int32(a[0])) {
		return 0, unix.EINVAL
	}
	var raw []byte
	for _, g := range groups {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(g))
	}
	return uint64(len(groups)), k.copyOut(a[1], raw)
}

// isSelf says whether a pid argument names the guest's process.
func (k *Kernel) isSelf(pid uint64) bool { return int32(pid) == 0 || int(int32(pid)) == k.cfg.PID }

func sysGetpgid(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	return uint64(k.proc.pgid), 0
}

func sysGetsid(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if !k.isSelf(a[0]) {
		return 0, unix.ESRCH
	}
	return uint64(k.proc.sid), 0
}

func sysSetpgid(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	pgid := int(int32(a[1]))
	switch {
	case pgid < 0:
		return 0, unix.EINVAL
	case !k.isSelf(a[0]):
		return 0, unix.ESRCH
	case pgid == k.proc.pgid || (pgid == 0 || pgid == k.cfg.PID) && k.proc.pgid == k.cfg.PID:
		return 0, 0
	}
	return 0, unix.EPERM // the group is the engine's, and the terminal's
}

func sysSetsid(_ *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return 0, unix.EPERM }

func sysUname(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, errnoOf(err)
	}
	if k.cfg.Hostname != "" {
		u.Nodename = [65]byte{}
		copy(u.Nodename[:64], k.cfg.Hostname)
	}
	return 0, put(k, a[0], &u)
}

func sysWait4(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const known = unix.WNOHANG | unix.WUNTRACED | unix.WCONTINUED | unix.WNOTHREAD | unix.WALL | unix.WCLONE
	if uint32(a[2])&^known != 0 {
		return 0, unix.EINVAL
	}
	if int32(a[0]) == -1<<31 {
		return 0, unix.ESRCH
	}
	return 0, unix.ECHILD // nothing forks here
}

func sysWaitid(_ *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const events = unix.WEXITED | unix.WSTOPPED | unix.WCONTINUED
	const known = unix.WNOHANG | unix.WNOWAIT | events | unix.WNOTHREAD | unix.WALL | unix.WCLONE
	if uint32(a[3])&^known != 0 || uint32(a[3])&events == 0 || uint32(a[0]) > unix.P_PGID {
		return 0, unix.EINVAL
	}
	return 0, unix.ECHILD
}

// refuseProcess is fork, vfork, execve and execveat.
func refuseProcess(what, instead string) handler {
	return func(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) {
		k.warn(what + " is not served: a program guest is one process: " + instead)
		return 0, unix.ENOSYS
	}
}

func sysArchPrctl(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	// arch/x86/include/uapi/asm/prctl.h
	const setGS, setFS, getFS, getGS, getCPUID = 0x1001, 0x1002, 0x1003, 0x1004, 0x1011
	switch a[0] {
	case setFS, setGS:
		if a[1] >= taskSize {
			return 0, unix.EPERM
		}
		if a[0] == setFS {
			t.CPU.SetFSBase(a[1])
		} else {
			t.CPU.SetGSBase(a[1])
		}
		return 0, 0
	case getFS:
		return 0, k.store64(a[1], t.CPU.FSBase())
	case getGS:
		return 0, k.store64(a[1], t.CPU.GSBase())
	case getCPUID:
		return 1, 0
	}
	return 0, unix.EINVAL
}

func sysSetTidAddress(_ *Kernel, t *Task, a args) (uint64, unix.Errno) {
	t.clearTID = a[0]
	return uint64(t.ID), 0
}

func sysSetRobustList(_ *Kernel, t *Task, a args) (uint64, unix.Errno) {
	const headSize = 24 // struct robust_list_head
	if a[1] != headSize {
		return 0, unix.EINVAL
	}
	t.robust = a[0]
	return 0, 0
}

func sysGetRobustList(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	t := k.task(a[0])
	if t == nil {
		return 0, unix.ESRCH
	}
	if errno := k.store64(a[2], 24); errno != 0 {
		return 0, errno
	}
	return 0, k.store64(a[1], t.robust)
}

// quietENOSYS is for calls that every C library tries at start and does without: not worth a line.
func quietENOSYS(_ *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return 0, unix.ENOSYS }

func sysPrctl(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	p := &k.proc
	flag := func(v *uint64) (uint64, unix.Errno) {
		if a[1] > 1 {
			return 0, unix.EINVAL
		}
		*v = a[1]
		return 0, 0
	}
	switch int32(a[0]) {
	case unix.PR_SET_NAME:
		// The kernel takes 15 bytes and needs no NUL after them.
		name, errno := k.text(a[1], 15, 0)
		if errno != 0 {
			return 0, errno
		}
		if name == "" {
			var b [15]byte
			if k.copyIn(a[1], b[:]) == 0 && b[0] != 0 {
				name = string(b[:])
			}
		}
		k.rename(t, []byte(name))
		return 0, 0
	case unix.PR_GET_NAME:
		return 0, k.copyOut(a[1], t.name[:])
	case unix.PR_SET_DUMPABLE:
		return flag(&p.dumpable)
	case unix.PR_GET_DUMPABLE:
		return p.dumpable, 0
	case unix.PR_SET_PDEATHSIG:
		if a[1] > maxSignal {
			return 0, unix.EINVAL
		}
		p.deathSig = a[1]
		return 0, 0
	case unix.PR_GET_PDEATHSIG:
		return 0, k.store32(a[1], uint32(p.deathSig))
	case unix.PR_SET_KEEPCAPS:
		return flag(&p.keepCaps)
	case unix.PR_GET_KEEPCAPS:
		return p.keepCaps, 0
	case unix.PR_SET_NO_NEW_PRIVS:
		if a[1] != 1 || a[2]|a[3]|a[4] != 0 {
			return 0, unix.EINVAL
		}
		p.noNewPrivs = 1
		return 0, 0
	case unix.PR_GET_NO_NEW_PRIVS:
		if a[1]|a[2]|a[3]|a[4] != 0 {
			return 0, unix.EINVAL
		}
		return p.noNewPrivs, 0
	case unix.PR_SET_THP_DISABLE:
		if a[2]|a[3]|a[4] != 0 {
			return 0, unix.EINVAL
		}
		return flag(&p.thpDisable)
	case unix.PR_GET_THP_DISABLE:
		return p.thpDisable, 0
	case unix.PR_SET_TIMERSLACK:
		p.timerSlack = a[1]
		if int64(a[1]) <= 0 {
			p.timerSlack = 50000
		}
		return 0, 0
	case unix.PR_GET_TIMERSLACK:
		return p.timerSlack, 0
	case unix.PR_GET_SECCOMP:
		return 0, 0
	case unix.PR_GET_TSC:
		return 0, k.store32(a[1], unix.PR_TSC_ENABLE)
	case unix.PR_CAPBSET_READ:
		n, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(a[1]), 0, 0, 0)
		return uint64(n), errnoOf(err)
	case unix.PR_GET_TID_ADDRESS:
		return 0, k.store64(a[1], t.clearTID)
	}
	return 0, unix.EINVAL
}

func sysPersonality(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	old := k.proc.persona
	if uint32(a[0]) != 0xffffffff {
		k.proc.persona = uint64(uint32(a[0]))
	}
	return old, 0
}

func sysUmask(_ *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	// The mask of the host process is the guest's: the kernel applies it together with default ACLs,
	// which nobody else can do right.
	return uint64(unix.Umask(int(a[0] & 0o777))), 0
}

// sysIsolate, sysGapRecord, sysProvoke, sysSafepoint and sysSync are Cloister's own (guest/abi).
func sysIsolate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[0] > 1 {
		return 0, unix.EINVAL
	}
	if k.cfg.Isolate == nil {
		return 0, 0
	}
	return 0, k.cfg.Isolate(a[0] == 1)
}

func sysSafepoint(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if k.cfg.SafePoint == nil {
		return 0, unix.ENOSYS
	}
	return 0, k.cfg.SafePoint(a[0], a[1])
}

func sysSyncCores(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) {
	if k.cfg.Sync == nil {
		return 0, unix.ENOSYS
	}
	return 0, k.cfg.Sync()
}

func sysGapRecord(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const size = 12*8 + 4*8 + abi.GapBuckets*8 + abi.GapRing*16
	if a[0]&pageMask != 0 || k.cfg.GapRecord == nil {
		return 0, unix.EINVAL
	}
	if _, errno := k.mem.Out(a[0], size); errno != 0 {
		return 0, errno
	}
	return 0, k.cfg.GapRecord(a[0])
}

func sysProvoke(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if k.cfg.Provoke == nil {
		return 0, unix.EPERM
	}
	if a[0] < abi.ProvokeHLT || a[0] > abi.ProvokeMMIO {
		return 0, unix.EINVAL
	}
	return 0, k.cfg.Provoke(a[0])
}
