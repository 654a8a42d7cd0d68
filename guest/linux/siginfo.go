package linux

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

// siginfo is the part of siginfo_t that means something (struct kernel_siginfo, include/linux/signal_types.h); the
// rest of the 128 bytes that a program sees is zero.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	fields             [32]byte // the union behind si_code, by its meaning
}

const siginfoSize = 128

// si_code (include/uapi/asm-generic/siginfo.h).
const (
	siUser   = 0
	siQueue  = -1
	siTimer  = -2
	siTkill  = -6
	siKernel = 0x80
)

// sentInfo is what kill, tkill and the kernel's own send_sig fill in: who sent it.
func (k *Kernel) sentInfo(sig uint64, code int32) siginfo {
	info := siginfo{signo: int32(sig), code: code}
	binary.LittleEndian.PutUint32(info.fields[0:], uint32(k.cfg.PID))
	binary.LittleEndian.PutUint32(info.fields[4:], uint32(k.proc.uid))
	return info
}

func kernelInfo(sig uint64) siginfo { return siginfo{signo: int32(sig), code: siKernel} }

// bytes are the siginfo_t of the program.
func (i *siginfo) bytes() []byte {
	return append(bytesOf(i), make([]byte, siginfoSize-len(bytesOf(i)))...)
}

// knownLayout says whether the union's meaning is known for this signal and code (kernel/signal.c:
// known_siginfo_layout): only then may the rest of a siginfo that a program gives be anything.
func knownLayout(sig uint64, code int32) bool {
	const asyncNL, lowest, pollCodes = -60, -7, 6 // SI_ASYNCNL, SI_DETHREAD, NSIGPOLL
	limits := map[unix.Signal]int32{              // NSIGILL, NSIGFPE and so on
		unix.SIGILL: 11, unix.SIGFPE: 15, unix.SIGSEGV: 10, unix.SIGBUS: 5, unix.SIGTRAP: 6, unix.SIGCHLD: 6, unix.SIGIO: pollCodes, unix.SIGSYS: 2,
	}
	switch {
	case code == siKernel:
		return true
	case code > siUser:
		if limit, specific := limits[unix.Signal(sig)]; specific {
			return code <= limit
		}
		return code <= pollCodes
	}
	return code >= lowest || code == asyncNL
}

// givenInfo reads the siginfo of rt_sigqueueinfo.
func (k *Kernel) givenInfo(sig, addr uint64) (siginfo, unix.Errno) {
	var info siginfo
	if errno := get(k, addr, &info); errno != 0 {
		return info, errno
	}
	info.signo = int32(sig)
	if !knownLayout(sig, info.code) {
		rest := make([]byte, siginfoSize-len(bytesOf(&info)))
		if errno := k.copyIn(addr+uint64(len(bytesOf(&info))), rest); errno != 0 {
			return info, errno
		}
		for _, b := range rest {
			if b != 0 {
				return info, unix.E2BIG
			}
		}
	}
	return info, 0
}

// sigEntry is one signal that waits with its siginfo.
type sigEntry struct {
	sig   uint64
	info  siginfo
	timer *timer // that sent it, nil for others
}

// sigQueue is what is pending for a task or for the process. A bit of set without an entry is a signal whose
// siginfo is lost.
type sigQueue struct {
	set  uint64
	list map[uint64][]sigEntry // by signal, in the order in which they came
}

func (q *sigQueue) add(e sigEntry) {
	if q.list == nil {
		q.list = map[uint64][]sigEntry{}
	}
	q.set |= sigBit(e.sig)
	q.list[e.sig] = append(q.list[e.sig], e)
}

// take removes one of sig; queued says whether there was an entry.
func (q *sigQueue) take(sig uint64) (e sigEntry, queued bool) {
	list := q.list[sig]
	if len(list) == 0 {
		q.set &^= sigBit(sig)
		return sigEntry{sig: sig, info: siginfo{signo: int32(sig)}}, false
	}
	e = list[0]
	if len(list) == 1 {
		delete(q.list, sig)
		q.set &^= sigBit(sig)
	} else {
		q.list[sig] = list[1:]
	}
	return e, true
}

// drop removes the entry of a timer.
func (q *sigQueue) drop(t *timer) bool {
	list := q.list[t.sig]
	i := slices.IndexFunc(list, func(e sigEntry) bool { return e.timer == t })
	if i < 0 {
		return false
	}
	q.list[t.sig] = slices.Delete(slices.Clone(list), i, i+1)
	if len(q.list[t.sig]) == 0 {
		delete(q.list, t.sig)
		q.set &^= sigBit(t.sig)
	}
	return true
}

func (q *sigQueue) entries() (n uint64) {
	for _, l := range q.list {
		n += uint64(len(l))
	}
	return n
}

// synchronous are the signals that an instruction of the program raises; they are delivered first
// (SYNCHRONOUS_MASK, kernel/signal.c).
const synchronous = 1<<(unix.SIGSEGV-1) | 1<<(unix.SIGBUS-1) | 1<<(unix.SIGILL-1) | 1<<(unix.SIGTRAP-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGSYS-1)

// nextSignal is the one of set, which is not empty, that comes first.
func nextSignal(set uint64) uint64 {
	if s := set & synchronous; s != 0 {
		set = s
	}
	return nextLowest(set)
}

// nextLowest is the lowest signal of set, which is not empty.
func nextLowest(set uint64) uint64 { return uint64(bits.TrailingZeros64(set)) + 1 }
