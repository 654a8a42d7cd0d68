package session

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// MaxSealed bounds what comes in a sealed file, bytes: the plan of a patch that fills the largest spare memory, as JSON.
const MaxSealed = 160 << 20

// seals make a file that stays as it is, whoever has it open (memfd_create(2), "File-sealing").
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL

// Seal makes a file of those bytes that nobody can change. The caller closes it. Nothing is mapped.
func Seal(name string, b []byte) (fd int, err error) {
	if len(b) > MaxSealed {
		return -1, fmt.Errorf("%s: %d bytes, at most %d", name, len(b), MaxSealed)
	}
	if fd, err = unix.MemfdCreate("cloister-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return -1, fmt.Errorf("%s: memfd_create: %w", name, err)
	}
	for len(b) > 0 && err == nil {
		var n int
		if n, err = unix.Write(fd, b); err == unix.EINTR {
			err = nil
		}
		b = b[max(n, 0):]
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("%s: %w", name, err), unix.Close(fd))
	}
	return fd, nil
}

// Unseal reads the one file that came with a message, which must be sealed and have that length, and closes what came.
func Unseal(fds []int, length int) (b []byte, err error) {
	defer func() {
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors in place of one", len(fds))
	}
	got, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("its seals: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return nil, err
	}
	if got&seals != seals || length < 0 || length > MaxSealed || st.Size != int64(length) {
		return nil, fmt.Errorf("seals %#x, %d bytes, where %#x and %d (at most %d) are expected", got, st.Size, seals, length, MaxSealed)
	}
	b = make([]byte, length)
	for n := 0; n < length; {
		k, err := unix.Pread(fds[0], b[n:], int64(n))
		switch {
		case err == unix.EINTR:
		case err == nil && k == 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		n += max(k, 0)
	}
	return b, nil
}
