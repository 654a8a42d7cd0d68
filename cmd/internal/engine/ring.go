package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/sdk/go/ring"
	"golang.org/x/sys/unix"
)

// ringFile is one --ring. Its memory is a file of its own, which the program, the helpers of the host and this process
// map (docs/decisions/0009-rings.md).
type ringFile struct {
	name string
	size uint64 // of the data, bytes
	fd   int
}

// maxRings bounds --ring: each is a descriptor.
const maxRings = 16

// addRing is --ring NAME=SIZE.
func (o *options) addRing(s string) error {
	name, text, ok := strings.Cut(s, "=")
	if !ok || !session.ValidRing(name) {
		return errors.New("want NAME=SIZE, such as out=1M; a name has letters, digits, - and _, at most 32")
	}
	size, err := parseSize(text)
	if err != nil {
		return err
	}
	if !ring.ValidSize(size) {
		return fmt.Errorf("want a power of two, %dK to %dG, not %d bytes", abi.RingMinSize>>10, abi.RingMaxSize>>30, size)
	}
	for _, r := range o.rings {
		if r.name == name {
			return fmt.Errorf("there is a ring %s already", name)
		}
	}
	if len(o.rings) == maxRings {
		return fmt.Errorf("at most %d rings", maxRings)
	}
	o.rings = append(o.rings, ringFile{name: name, size: size, fd: -1})
	return nil
}

// makeRings makes the rings' memory, whole and in its final state before anybody can open it, and the links by
// which others find it. The descriptors stay open until this process ends.
func (e *engine) makeRings() error {
	if len(e.o.rings) == 0 {
		return nil
	}
	dir := filepath.Join(e.vmDir, session.RingsDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("rings: %w", err)
	}
	for i := range e.o.rings {
		r := &e.o.rings[i]
		if err := e.makeRing(r); err != nil {
			return fmt.Errorf("ring %s: %w", r.name, err)
		}
		if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.fd), filepath.Join(dir, r.name)); err != nil {
			return fmt.Errorf("ring %s: %w", r.name, err)
		}
	}
	return nil
}

func (e *engine) makeRing(r *ringFile) (err error) {
	if r.fd, err = unix.MemfdCreate("cloister-ring-"+r.name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	n := abi.RingData + int64(r.size)
	if err = unix.Ftruncate(r.fd, n); err != nil {
		return fmt.Errorf("ftruncate to %d bytes: %w", n, err)
	}
	if err = unix.Fchmod(r.fd, 0o600); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	// Mapped here too, and never unmapped: locked pages stay in memory for everybody, and the last page is there now.
	mem, err := unix.Mmap(r.fd, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("mmap of %d bytes: %w", n, err)
	}
	if err := ring.Format(mem); err != nil {
		return err
	}
	if !e.o.noLock {
		if err := unix.Mlock(mem); err != nil && !e.o.quiet {
			session.Failf("ring %s is not locked in memory: %v: raise RLIMIT_MEMLOCK (ulimit -l)", r.name, err)
		}
	}
	// Whoever could make it shorter could end the others by SIGBUS.
	if _, err := unix.FcntlInt(uintptr(r.fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal its size: %w", err)
	}
	return nil
}

// sharedRings is vmm.Config.Shared.
func (e *engine) sharedRings() map[string]int {
	m := map[string]int{}
	for _, r := range e.o.rings {
		m[strings.TrimPrefix(abi.RingDir, "/dev/")+r.name] = r.fd
	}
	return m
}

// unlinkRings removes the links, by their names: reading a directory takes a descriptor.
func (e *engine) unlinkRings() (err error) {
	dir := filepath.Join(e.vmDir, session.RingsDir)
	for _, r := range e.o.rings {
		if e := os.Remove(filepath.Join(dir, r.name)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	if len(e.o.rings) > 0 {
		if e := os.Remove(dir); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return err
}
