package linux

import (
	"encoding/binary"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// include/uapi/asm-generic/poll.h; x/sys/unix has the others.
const pollRdNorm, pollRdBand, pollWrNorm, pollWrBand = 0x40, 0x80, 0x100, 0x200

// pollSlot is one descriptor of a poll or select: what the host is asked, or what is known at once.
type pollSlot struct {
	host  int          // host descriptor, -1 when the answer is in now
	d     *description // behind host
	want  int16
	now   int16
	valid bool
}

// pollSlotOf translates a guest descriptor. Synthetic files are always ready, as regular files are.
func (k *Kernel) pollSlotOf(fd uint64, want int16) pollSlot {
	d, errno := k.fds.io(fd)
	if errno != 0 {
		return pollSlot{host: -1, now: unix.POLLNVAL}
	}
	if d.fd < 0 {
		return pollSlot{host: -1, want: want, now: want & (unix.POLLIN | unix.POLLOUT | pollRdNorm | pollWrNorm), valid: true}
	}
	return pollSlot{host: d.fd, d: d, want: want, valid: true}
}

// pollSlots waits until one of slots is ready and leaves the events in now; it returns how many are.
func (k *Kernel) pollSlots(slots []pollSlot, deadline time.Time) (int, unix.Errno) {
	host := make([]unix.PollFd, len(slots))
	ready := 0
	for i, s := range slots {
		if s.d != nil {
			defer s.d.pin().unpin()
		}
		host[i] = unix.PollFd{Fd: int32(s.host), Events: s.want}
		if s.now != 0 {
			ready++
		}
	}
	if ready > 0 {
		deadline = time.Now()
	}
	if _, errno := k.ppoll(host, deadline); errno != 0 {
		return 0, errno
	}
	ready = 0
	for i := range slots {
		slots[i].now |= host[i].Revents
		if slots[i].now != 0 {
			ready++
		}
	}
	return ready, 0
}

func sysPoll(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	deadline := time.Time{}
	if ms := int32(a[2]); ms >= 0 {
		deadline = t.until(time.Duration(ms) * time.Millisecond)
	}
	return k.poll(a[0], a[1], deadline)
}

func sysPpoll(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	deadline, errno := k.timeout(t, a[2])
	if errno != 0 {
		return 0, errno
	}
	if errno = k.tempMask(t, a[3], a[4]); errno != 0 {
		return 0, errno
	}
	n, errno := k.poll(a[0], a[1], deadline)
	return n, k.leftover(a[2], deadline, errno)
}

// leftover writes the time that is left of a timeout back, as ppoll and pselect6 do, also when a signal cut them
// (a call that is made again keeps its deadline). A timeout in
// read-only memory is no error (fs/select.c: poll_select_finish).
func (k *Kernel) leftover(addr uint64, deadline time.Time, errno unix.Errno) unix.Errno {
	if addr != 0 && !deadline.IsZero() {
		left := unix.NsecToTimespec(max(0, int64(time.Until(deadline))))
		_ = put(k, addr, &left) // no error, as said above
	}
	return errno
}

func (k *Kernel) poll(addr, count uint64, deadline time.Time) (uint64, unix.Errno) {
	count = uint64(uint32(count))
	if count > k.lim.nofile() {
		return 0, unix.EINVAL
	}
	if !accessOK(addr, 8*count) {
		return 0, unix.EFAULT
	}
	raw := make([]byte, 8*count)
	if errno := k.copyIn(addr, raw); errno != 0 {
		return 0, errno
	}
	slots := make([]pollSlot, count)
	for i := range slots {
		fd := int32(binary.LittleEndian.Uint32(raw[8*i:]))
		if fd < 0 {
			slots[i] = pollSlot{host: -1}
			continue
		}
		slots[i] = k.pollSlotOf(uint64(fd), int16(binary.LittleEndian.Uint16(raw[8*i+4:])))
	}
	n, errno := k.pollSlots(slots, deadline)
	if errno != 0 {
		return 0, errno
	}
	for i, s := range slots {
		binary.LittleEndian.PutUint16(raw[8*i+6:], uint16(s.now))
		// Only revents is written: the rest of the array is the program's, and may be changing.
		if errno := k.copyOut(addr+uint64(8*i+6), raw[8*i+6:8*i+8]); errno != 0 {
			return 0, errno
		}
	}
	return uint64(n), 0
}

// timespecOK is timespec64_valid of the kernel (include/linux/time64.h).
func timespecOK(ts *unix.Timespec) bool { return ts.Sec >= 0 && uint64(ts.Nsec) < 1e9 }

// span turns a valid timespec into a duration, saturating at the longest that Go can say (292 years).
func span(ts *unix.Timespec) time.Duration {
	if ts.Sec >= math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(ts.Sec)*time.Second + time.Duration(ts.Nsec)
}

// timeout reads an optional relative timespec; no pointer means for ever (the zero time).
func (k *Kernel) timeout(t *Task, addr uint64) (time.Time, unix.Errno) {
	if addr == 0 {
		return time.Time{}, 0
	}
	var ts unix.Timespec
	if errno := get(k, addr, &ts); errno != 0 {
		return time.Time{}, errno
	}
	if !timespecOK(&ts) {
		return time.Time{}, unix.EINVAL
	}
	return t.until(span(&ts)), 0
}

func sysSelect(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	deadline := time.Time{}
	if a[4] != 0 {
		var tv unix.Timeval
		if errno := get(k, a[4], &tv); errno != 0 {
			return 0, errno
		}
		// The kernel carries whole seconds over from the microseconds, and then checks.
		ts := unix.Timespec{Sec: tv.Sec + tv.Usec/1e6, Nsec: tv.Usec % 1e6 * 1000}
		if !timespecOK(&ts) {
			return 0, unix.EINVAL
		}
		deadline = t.until(span(&ts))
	}
	n, errno := k.selectFDs(a, deadline)
	if a[4] != 0 {
		left := unix.NsecToTimeval(max(0, int64(time.Until(deadline))))
		_ = put(k, a[4], &left) // as with ppoll, no error
	}
	return n, errno
}

func sysPselect6(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var sig [2]uint64
	if a[5] != 0 {
		if errno := get(k, a[5], &sig); errno != 0 {
			return 0, errno
		}
	}
	deadline, errno := k.timeout(t, a[4])
	if errno != 0 {
		return 0, errno
	}
	if errno = k.tempMask(t, sig[0], sig[1]); errno != 0 {
		return 0, errno
	}
	n, errno := k.selectFDs(a, deadline)
	return n, k.leftover(a[4], deadline, errno)
}

// The events of select's three sets (fs/select.c: POLLIN_SET, POLLOUT_SET, POLLEX_SET).
var selectEvents = [3]struct{ ask, hit int16 }{
	{pollRdNorm | pollRdBand | unix.POLLIN, pollRdNorm | pollRdBand | unix.POLLIN | unix.POLLHUP | unix.POLLERR},
	{pollWrBand | pollWrNorm | unix.POLLOUT, pollWrBand | pollWrNorm | unix.POLLOUT | unix.POLLERR},
	{unix.POLLPRI, unix.POLLPRI},
}

func (k *Kernel) selectFDs(a args, deadline time.Time) (uint64, unix.Errno) {
	n := int32(a[0])
	if n < 0 {
		return 0, unix.EINVAL
	}
	// The kernel looks at no descriptor beyond its table (which has at least 64 places).
	count := min(int(n), max(64, (len(k.fds.e)+63)&^63))
	size := (count + 63) / 64 * 8
	var sets [3][]byte
	for i := range sets {
		if a[1+i] == 0 {
			continue
		}
		sets[i] = make([]byte, size)
		if errno := k.copyIn(a[1+i], sets[i]); errno != 0 {
			return 0, errno
		}
	}
	var slots []pollSlot
	var fds []int
	for fd := range count {
		want := int16(0)
		for i, set := range sets {
			if set != nil && set[fd/8]&(1<<(fd%8)) != 0 {
				want |= selectEvents[i].ask
			}
		}
		if want == 0 {
			continue
		}
		s := k.pollSlotOf(uint64(fd), want)
		if !s.valid {
			return 0, unix.EBADF
		}
		slots, fds = append(slots, s), append(fds, fd)
	}
	if _, errno := k.pollSlots(slots, deadline); errno != 0 {
		return 0, errno
	}
	total := uint64(0)
	for i, set := range sets {
		if set == nil {
			continue
		}
		out := make([]byte, size)
		for j, fd := range fds {
			if set[fd/8]&(1<<(fd%8)) != 0 && slots[j].now&selectEvents[i].hit != 0 {
				out[fd/8] |= 1 << (fd % 8)
				total++
			}
		}
		if errno := k.copyOut(a[1+i], out); errno != 0 {
			return 0, errno
		}
	}
	return total, 0
}
