package linux

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A wait stays with the file that it began with: another task closes the descriptor, and a new file that gets the host's
// number and is ready at once must not end it.
func TestWaitKeepsItsFile(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(g *guest, fd uint64) (nr uint64, a []uint64)
	}{
		{"poll", func(g *guest, fd uint64) (uint64, []uint64) {
			return unix.SYS_POLL, []uint64{g.words(fd | unix.POLLIN<<32), 1, 150}
		}},
		{"epoll", func(g *guest, fd uint64) (uint64, []uint64) {
			return unix.SYS_EPOLL_WAIT, []uint64{fd, g.buf(64), 1, 150}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, nil)
			second, errno := g.k.newTask()
			if errno != 0 {
				t.Fatal(errno)
			}
			second.CPU = &fakeCPU{}
			fd := uint64(g.call(unix.SYS_EVENTFD2, 0, 0))
			if c.name == "epoll" {
				fd = uint64(g.call(unix.SYS_EPOLL_CREATE1, 0))
			}
			nr, a := c.make(g, fd)
			number := g.k.fds.e[fd].d.fd
			ended := make(chan int64)
			go func() { ended <- g.call(nr, a...) }()
			time.Sleep(30 * time.Millisecond)
			closing := g.k.Syscall(second, unix.SYS_CLOSE, args{fd})
			if closing.Ret != 0 {
				t.Fatalf("close: %+v", closing)
			}
			if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err != nil {
				t.Errorf("host descriptor %d was closed under the wait: %v", number, err)
			}
			if n := <-ended; n != 0 {
				t.Errorf("the wait ended with %d, want its time to be up", n)
			}
			if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err != unix.EBADF {
				t.Errorf("host descriptor %d is open behind the wait: %v", number, err)
			}
		})
	}
}
