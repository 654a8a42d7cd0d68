package vcpu

import (
	"errors"
	"runtime"
	"sync/atomic"
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
			told := 0
			m.set.Died = func(err error) {
				if told++; !errors.Is(err, ErrDied) || dying.ended() {
					t.Errorf("told of %v; the thread has ended already: %v", err, dying.ended())
				}
			}
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
			if told != 1 {
				t.Errorf("told %d times", told)
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

// TestAcknowledgedAndDied: what condemns the set finds the threads that are gone without anybody having kicked them since: both of two that died behind their acknowledgement are told of and
// end, so that who serves them goes home.
func TestAcknowledgedAndDied(t *testing.T) {
	m, born := boot(t, guestSpin, resumes)
	resume(t, born)
	var dying [2]*Thread
	var die [2]func()
	for i := range dying {
		dying[i], die[i] = mortal(t, m.set, false)
	}
	told := 0
	m.set.Died = func(error) { told++ }
	p, err := m.set.StopFor(Purpose{Meanwhile: func() {
		for i := range dying {
			atomic.StoreUint64(&dying[i].c.ack, m.set.gen)
			die[i]()
		}
	}}, seconds(20))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(100 * time.Millisecond); err == nil {
		t.Error("resumed with two dead vCPUs")
	}
	select {
	case <-m.Done():
	case <-time.After(seconds(10)):
		t.Error("the live vCPU runs on")
	}
	if told != 2 || !dying[0].ended() || !dying[1].ended() {
		t.Errorf("told of %d deaths; ended: %v, %v", told, dying[0].ended(), dying[1].ended())
	}
}
