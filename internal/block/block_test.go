package block

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Operations of futex(2).
const (
	waitPrivate = 128
	wakePrivate = 129
)

// Both calls end with what they wait for, or with the time, while collections run and more goroutines wait than there are Ps.
func TestCalls(t *testing.T) {
	const waiters = 20
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var word uint32
	var all sync.WaitGroup
	for range waiters {
		all.Go(func() {
			for atomic.LoadUint32(&word) == 0 { // ORDER(none): a test's
				Futex(&word, waitPrivate, 0, nil)
			}
		})
		all.Go(func() {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // on the stack
			n, err := 0, error(unix.EINTR)
			for errors.Is(err, unix.EINTR) {
				n, err = Poll(fds, nil)
			}
			if n != 1 || err != nil || fds[0].Revents != unix.POLLIN {
				t.Errorf("poll: %d ready, %v, events %#x", n, err, fds[0].Revents)
			}
		})
	}
	for range 20 {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	atomic.StoreUint32(&word, 1) // ORDER(none): a test's
	Futex(&word, wakePrivate, waiters, nil)
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	at := time.Now()
	short := unix.Timespec{Nsec: 20e6}
	Futex(&word, waitPrivate, 1, &short)
	if n, err := Poll([]unix.PollFd{{Fd: -1}}, &short); n != 0 || err != nil {
		t.Errorf("poll of nothing: %d, %v", n, err)
	}
	if d := time.Since(at); d < 40*time.Millisecond {
		t.Errorf("two waits of 20 ms took %v", d)
	}
	if _, err := Poll([]unix.PollFd{{}}, &unix.Timespec{Nsec: -1}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("poll with no sensible time: %v", err)
	}
}
