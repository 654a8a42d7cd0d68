package vcpu

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"golang.org/x/sys/unix"
)

// mortal is a vCPU whose thread never acknowledges, and is gone once die was called: as after a fault in the kernel, or by a filter of system calls that kills threads. It is put before
// or behind the set's own.
func mortal(t *testing.T, s *Set, first bool) (dying *Thread, die func()) {
	t.Helper()
	tid, end, gone := make(chan int), make(chan bool), make(chan bool)
	var run func()
	run = func() {
		runtime.LockOSThread()      // for good: the thread ends with the goroutine
		if unix.Gettid() == s.pid { // but for the process's first one
			go run()
			<-end
			runtime.UnlockOSThread()
			return
		}
		defer close(gone)
		var set unix.Sigset_t
		set.Val[0] = 1 << (uint(KickSignal) - 1)
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
			t.Error(err)
		}
		tid <- unix.Gettid()
		<-end
	}
	go run()
	dying = &Thread{c: &control{run: new(kvm.Run)}, tid: <-tid}
	dying.cfg.ID = 1
	dying.c.offer = s.carried()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.threads = append(s.threads, dying); first {
		s.threads[0], s.threads[1] = s.threads[1], s.threads[0]
	}
	return dying, func() {
		close(end)
		<-gone
		for unix.Tgkill(s.pid, dying.tid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestThreadDies: a vCPU's thread that is gone ends the VM (K5), whenever it went and whoever finds it: no stop comes about, nothing is stored, no vCPU is in the guest any more, and none comes.
func TestThreadDies(t *testing.T) {
	for _, c := range []struct {
		name               string
		first, late, raise bool
	}{{"before the stop", false, false, false}, {"before the stop, asked first", true, false, false}, {"within it", false, true, false}, {"within it, asked first", true, true, false}, {"found by a signal", true, false, true}} {
		t.Run(c.name, func(t *testing.T) {
			m, born := boot(t, guestSpin, resumes)
			m.set.Resend = 5 * time.Millisecond
			resume(t, born)
			dying, die := mortal(t, m.set, c.first)
			word := uint64(1)
			why := Purpose{From: 1, To: 2, Stores: []Store{{To: wordAddr(&word), Old: 1, New: 2}}}
			if c.late {
				why.Meanwhile = die
			} else {
				die()
			}
			var err error
			if c.raise {
				err = m.set.Attend(dying)
			} else {
				_, err = m.set.StopFor(why, seconds(20))
			}
			if !errors.Is(err, ErrDied) || errors.Is(err, ErrStopTimeout) {
				t.Fatal(err)
			}
			select {
			case <-m.Done():
			case <-time.After(seconds(10)):
				t.Error("the other vCPU runs on")
				m.set = NewSet(m.Thread) // boot ends it
				m.set.gen = m.c.req
				return
			}
			if word != 1 || !dying.ended() {
				t.Errorf("the word is %d, the thread has ended: %v", word, dying.ended())
			}
			if err := m.set.Add(&Thread{}); !errors.Is(err, ErrEnded) {
				t.Errorf("another vCPU may come: %v", err)
			}
		})
	}
}
