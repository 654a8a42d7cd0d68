package cores

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Lease is the right to a core, for as long as its files are open.
type Lease struct {
	f    *os.File
	lock int // a socket with the core's name, which no other on this machine can have
}

// Take leases cpu. What excludes others, whatever their user and directory, is a name in the abstract socket
// namespace (unix(7); a network namespace has its own). The file in dir says to those who can read it
// who the owner is.
func Take(dir string, cpu int, owner string) (*Lease, error) {
	name := filepath.Join(dir, fmt.Sprintf("cpu-%d.lease", cpu))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o666)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("CPU %d: another user leases from %s: set CLOISTER_RUN_DIR to a directory of your own", cpu, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lease CPU %d: %w", cpu, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who, _ := io.ReadAll(io.LimitReader(f, 200)) // only for the message
		err = f.Close()
		return nil, errors.Join(fmt.Errorf("CPU %d is in use by %s: choose another, or stop it (cloister ps)", cpu, strings.TrimSpace(string(who))), err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(owner+"\n"), 0)
	}
	lock := -1
	if err == nil {
		lock, err = claimName(cpu)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Lease{f, lock}, nil
}

// claimName binds the core's name, which goes with its socket, however this process ends.
func claimName(cpu int) (int, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("lease CPU %d: %w", cpu, err)
	}
	err = unix.Bind(s, &unix.SockaddrUnix{Name: fmt.Sprintf("@cloister-cpu-%d", cpu)})
	if err == nil {
		return s, nil
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = errors.New("another user's Cloister, or one with another run directory, has it: choose another CPU")
	}
	return -1, errors.Join(fmt.Errorf("CPU %d is in use: %w", cpu, err), unix.Close(s))
}

// Release gives the core back.
func (l *Lease) Release() error { return errors.Join(unix.Close(l.lock), l.f.Close()) }
