package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// scratchNeed is the room for one run in bytes: binaries, initramfs, CD.
const scratchNeed = 640 << 20

// noRoom is what the kernel, apt and compilers say of a disk that has filled up since needSpace looked.
var noRoom = regexp.MustCompile(`(?im)^.*(no space left on device|enough free space).*$`)

// outOfRoom gives an error whose cause is a full disk one line with the remedy, whatever could not be had for it; any other as it is. That is
// never ErrUnavailable: the machine could have what is missing.
func outOfRoom(err error) error {
	if said := (fullDisk{}); err == nil || errors.As(err, &said) {
		return err
	}
	line := noRoom.FindString(err.Error())
	if line == "" {
		return err
	}
	return fmt.Errorf("%s: make room (apt-get clean gives some back), or set %s and TMPDIR to another disk", strings.TrimSpace(line), CacheVar)
}

// scratch makes a directory for one run below the cache, where there is room, and
// sweeps those of runs that were killed: theirs are the ones whose lock is free. It needs so many bytes.
func scratch(cacheDir string, need int64) (dir string, release func() error, err error) {
	all := filepath.Join(cacheDir, "run")
	if err := os.MkdirAll(all, 0o755); err != nil {
		return "", nil, err
	}
	old, err := os.ReadDir(all)
	if err != nil {
		return "", nil, err
	}
	for _, e := range old {
		if err := sweep(filepath.Join(all, e.Name())); err != nil {
			return "", nil, err
		}
	}
	if err := needSpace(all, need); err != nil {
		return "", nil, err
	}
	// Another run's sweep may meet the directory before it is locked and take it.
	for range 10 {
		if dir, err = os.MkdirTemp(all, ""); err != nil {
			return "", nil, err
		}
		lock, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			if err := lock.Close(); err != nil {
				return "", nil, err
			}
			continue
		}
		return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
	}
	return "", nil, fmt.Errorf("%s: other runs take every new directory away", all)
}

// lockDir takes the lock on a directory itself, which is there as long as the
// directory is, or fails at once with EWOULDBLOCK.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func sweep(dir string) error {
	lock, err := lockDir(dir)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
		return nil // in use, or its owner was faster
	}
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), lock.Close())
}
