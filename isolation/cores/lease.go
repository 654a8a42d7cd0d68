package cores

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Lease is the right to a core, for as long as its files are open.
type Lease struct {
	cpu  int
	f    *os.File
	lock int // a socket with the core's name, which no other on this machine can have
}

// ours are the CPUs that this process leases.
var ours sync.Map

// Take leases cpu. What excludes others, whatever their user and directory, is a name in the abstract socket
// namespace (unix(7); a network namespace has its own). The file in dir says to those who can read it
// who the owner is; it goes with the lease. One that a killed owner has left holds nothing: the next Take uses it.
func Take(dir string, cpu int, owner string) (*Lease, error) {
	f, err := lockFile(filepath.Join(dir, fmt.Sprintf("cpu-%d.lease", cpu)))
	var held heldError
	switch {
	case errors.As(err, &held):
		return nil, fmt.Errorf("CPU %d is in use by %s: choose another, or stop it (cloister ps)", cpu, string(held))
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("CPU %d: another user leases from %s: set CLOISTER_RUN_DIR to a directory of your own", cpu, dir)
	case err != nil:
		return nil, fmt.Errorf("lease CPU %d: %w", cpu, err)
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
		return nil, errors.Join(err, dropFile(f))
	}
	ours.Store(cpu, nil)
	return &Lease{cpu, f, lock}, nil
}

// Take leases cpu for one thread of this process; allowed is where the process may run. isolcpus= takes the isolated CPUs from
// that, so one that is not in it is tried: a thread goes there for a moment. That comes after the lease, or it would break into
// the core of somebody who has it. The error names what is wrong and what to choose instead.
func (h Host) Take(dir string, cpu int, owner string, allowed []int) (*Lease, error) {
	if err := h.check(cpu, allowed); err != nil {
		return nil, err
	}
	l, err := Take(dir, cpu, owner)
	if err == nil && !slices.Contains(allowed, cpu) && !usable(cpu) {
		err = fmt.Errorf("CPU %d is outside this process's cpuset: choose one of %s, or start from another cgroup", cpu, Format(allowed))
		return nil, errors.Join(err, l.Release())
	}
	return l, err
}

// Leased lists the CPUs on line that other processes lease.
func (h Host) Leased() (list []int, err error) {
	online, err := h.list("online")
	for _, c := range online {
		used, e := InUse(c)
		if err = errors.Join(err, e); used {
			list = append(list, c)
		}
	}
	return list, err
}

// heldError is the owner of a file that somebody else has locked, as the file says.
type heldError string

func (e heldError) Error() string { return "locked by " + string(e) }

// lockFile opens and locks a file that has this name. An owner removes the file before he unlocks it, so what was opened
// may have lost its name by the time that it could be locked: then it would exclude nobody, and the name is tried again.
func lockFile(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o666)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errors.Join(err, f.Close())
			}
			who, _ := io.ReadAll(io.LimitReader(f, 200)) // only for the message
			return nil, errors.Join(heldError(strings.TrimSpace(string(who))), f.Close())
		}
		named, err := hasName(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if named {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// hasName reports whether the name that f was opened by is f's still.
func hasName(f *os.File) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, there), err
}

// dropFile removes and unlocks a file of lockFile's. In a directory where only its maker may remove it, a file that
// another user has left stays, which harms nobody.
func dropFile(f *os.File) error {
	named, err := hasName(f)
	if named {
		if err = os.Remove(f.Name()); errors.Is(err, os.ErrPermission) {
			err = nil
		}
	}
	return errors.Join(err, f.Close())
}

// claimName binds the core's name, which goes with its socket, however this process ends.
func claimName(cpu int) (int, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("lease CPU %d: %w", cpu, err)
	}
	err = unix.Bind(s, name(cpu))
	if err == nil {
		return s, nil
	}
	if errors.Is(err, unix.EADDRINUSE) {
		err = errors.New("another user's Cloister, or one with another run directory, has it: choose another CPU")
	}
	return -1, errors.Join(fmt.Errorf("CPU %d is in use: %w", cpu, err), unix.Close(s))
}

// Release gives the core back, and removes the file. In this order: while the file is locked, whoever wants the core is told
// by whom, and nobody finds a name without a lock or a lock without a name.
func (l *Lease) Release() error {
	ours.Delete(l.cpu)
	return errors.Join(unix.Close(l.lock), dropFile(l.f))
}

// InUse reports whether another process on this machine leases cpu, by asking for the core's name. Asking takes nothing and
// disturbs nobody.
func InUse(cpu int) (bool, error) {
	if _, own := ours.Load(cpu); own {
		return false, nil
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("ask who leases CPU %d: %w", cpu, err)
	}
	err = unix.Connect(s, name(cpu))
	used := err == nil
	if errors.Is(err, unix.ECONNREFUSED) {
		err = nil // nobody has bound it
	}
	if err != nil {
		err = fmt.Errorf("ask who leases CPU %d: %w", cpu, err)
	}
	return used, errors.Join(err, unix.Close(s))
}

// name is a core's name in the abstract socket namespace.
func name(cpu int) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("@cloister-cpu-%d", cpu)}
}
