package engine

import (
	"errors"
	"sync"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"golang.org/x/sys/unix"
)

// link is the engine's end of the wire. Until the monitor is wanted, messages wait: encoding the first one
// takes longer than a short program runs, and such a program may never need a monitor.
type link struct {
	wire session.Wire

	mu    sync.Mutex
	up    bool
	queue []func() error
}

// tell sends a message, or keeps it for open.
func (l *link) tell(m session.Message, fds ...int) error {
	return l.do(func() error { return l.wire.Send(m, fds...) })
}

// tellSealed is tell with a sealed file; its descriptor is closed when it was sent.
func (l *link) tellSealed(m session.Message, fd int) error {
	return l.do(func() error { return errors.Join(l.wire.Send(m, fd), unix.Close(fd)) })
}

func (l *link) do(send func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		l.queue = append(l.queue, send)
		return nil
	}
	return send()
}

// open sends what has waited; from here on messages go at once.
func (l *link) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	for _, send := range l.queue {
		err = errors.Join(err, send())
	}
	l.up, l.queue = true, nil
	return err
}
