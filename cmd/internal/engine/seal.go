package engine

import (
	"errors"
	"sync"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
)

// questions are what vCPUs wait for: whether they may be sealed.
type questions struct {
	mu   sync.Mutex
	open map[int]chan string // by vCPU
	gone bool                // nobody answers any more
}

// ask opens a question; nil when nobody would answer.
func (q *questions) ask(vcpu int) <-chan string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return nil
	}
	if q.open == nil {
		q.open = map[int]chan string{}
	}
	c := make(chan string, 1)
	q.open[vcpu] = c
	return c
}

// answer closes one. An answer that nobody waits for any more is of a run that ends.
func (q *questions) answer(vcpu int, why string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c := q.open[vcpu]; c != nil {
		c <- why
		delete(q.open, vcpu)
	}
}

// end answers all, now and later, with a refusal.
func (q *questions) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	for vcpu, c := range q.open {
		close(c)
		delete(q.open, vcpu)
	}
}

// maySeal is vmm.Config.MaySeal under --require: the monitor looks at the vCPU's core as it is now. Without a monitor nobody
// can, and what nobody has looked at is not quiet enough.
func (e *engine) maySeal(vcpu int, over <-chan struct{}) error {
	c := e.seals.ask(vcpu)
	if c == nil {
		return errors.New("the monitor is gone")
	}
	e.tell(session.Message{Seal: &session.SealAsked{VCPU: vcpu}})
	select {
	case why, ok := <-c:
		switch {
		case !ok:
			return errors.New("the monitor is gone")
		case why != "":
			return errors.New(why)
		}
		return nil
	case <-over:
		return errors.New("the run ends")
	}
}
