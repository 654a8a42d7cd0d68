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

// Lease is the right to a core, for as long as its file is open.
type Lease struct{ f *os.File }

// Take leases cpu under dir (one directory for the whole machine). owner is a word for the error message
// that the next one gets who wants the same core.
func Take(dir string, cpu int, owner string) (*Lease, error) {
	name := filepath.Join(dir, fmt.Sprintf("cpu-%d.lease", cpu))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("lease CPU %d: %w", cpu, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who, _ := io.ReadAll(io.LimitReader(f, 200)) // only for the message
		err = errors.Join(f.Close())
		return nil, errors.Join(fmt.Errorf("CPU %d is in use by %s: choose another, or stop it (cloister ps)", cpu, strings.TrimSpace(string(who))), err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(owner+"\n"), 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lease CPU %d: %w", cpu, err), f.Close())
		}
	}
	return &Lease{f}, nil
}

// Release gives the core back.
func (l *Lease) Release() error { return l.f.Close() }
