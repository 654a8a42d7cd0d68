package vcpu

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// Offsets in the XSAVE area (Intel SDM vol. 1, 13.4.1 and 13.4.2).
const (
	atMXCSR    = 24
	atXMM3     = 160 + 3*16
	atXStateBV = 512
)

// TestStateComesWithTheSignal: who serves a signal has the registers, without a further hand-over; what he puts is loaded with his answer; what KVM refuses
// then is served as an internal error, once.
func TestStateComesWithTheSignal(t *testing.T) {
	const none = ^uintptr(0)
	type seen struct {
		cause breaks.Cause
		errno unix.Errno
		ops   bool // something was asked of the vCPU's thread
		mark  uint64
		cs    uint64
	}
	saw := make(chan seen)
	put := make(chan func(*kvm.XSave), 1)
	m, born := boot(t, guestSpin, func(x *Exit) Answer {
		if x.Cause == breaks.InternalError {
			saw <- seen{cause: x.Cause, errno: x.Errno}
			return Answer{Kind: AnswerEnd}
		}
		x.t.c.op = none
		sregs, err := x.Sregs()
		if err != nil {
			t.Error(err)
		}
		state, err := x.XSave()
		if err != nil {
			t.Error(err)
		}
		s := seen{cause: x.Cause, ops: x.t.c.op != none, mark: binary.LittleEndian.Uint64(state[atXMM3:]), cs: sregs.CS.Base}
		select {
		case change := <-put:
			next := *state
			change(&next)
			x.PutXSave(&next)
			if again, err := x.XSave(); err != nil || *again != next {
				t.Errorf("what was put is not what is read before it is loaded (%v)", err)
			}
		default:
		}
		saw <- s
		return Answer{Kind: AnswerResume}
	})
	resume(t, born)
	attend := func() seen {
		t.Helper()
		if err := m.set.Attend(m.Thread); err != nil {
			t.Fatal(err)
		}
		select {
		case s := <-saw:
			return s
		case <-time.After(10 * time.Second):
			t.Fatal("nobody attends")
		}
		panic("cannot be reached by input: Fatal does not return")
	}
	const mark = 0x1122334455667788
	put <- func(s *kvm.XSave) {
		binary.LittleEndian.PutUint64(s[atXStateBV:], 3)
		binary.LittleEndian.PutUint64(s[atXMM3:], mark)
	}
	if s := attend(); s != (seen{cause: breaks.Signal}) {
		t.Errorf("at first: %+v", s)
	}
	for range 3 {
		if s := attend(); s != (seen{cause: breaks.Signal, mark: mark}) {
			t.Errorf("behind the answer: %+v", s)
		}
	}
	put <- func(s *kvm.XSave) { binary.LittleEndian.PutUint32(s[atMXCSR:], 0xffff_ffff) }
	attend()
	if s := <-saw; s != (seen{cause: breaks.InternalError, errno: unix.EINVAL}) {
		t.Errorf("a state that no processor takes: %+v", s)
	}
	<-m.Done()
}
