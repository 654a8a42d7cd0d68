package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Writes notices that files are written to, without reading them (inotify(7)). It sees what user space writes, through
// any mount of the same file system; sysfs has one for each network namespace, and what the kernel changes by itself is no write.
type Writes struct {
	fd    int
	names map[int32]string
}

// Writes watches files of the host, by their names without the leading slash. The error names the file.
func (l Live) Writes(names []string) (*Writes, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch files for writes: inotify: %w: raise fs.inotify.max_user_instances", err)
	}
	w := &Writes{fd: fd, names: map[int32]string{}}
	for _, n := range names {
		wd, err := unix.InotifyAddWatch(fd, l.path(n), unix.IN_MODIFY)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("watch /%s for writes: %w", n, err), w.Close())
		}
		w.names[int32(wd)] = n
	}
	return w, nil
}

// Seen gives the files that were written to since it was last asked, each once, sorted. When events were lost it gives all.
func (w *Writes) Seen() (list []string, err error) {
	var b [4096]byte
	for {
		n, err := unix.Read(w.fd, b[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return list, fmt.Errorf("read what was written to: %w", err)
		}
		// struct inotify_event: wd, mask, cookie, len, and len bytes of a name, which files by themselves have not.
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			wd, mask := int32(binary.NativeEndian.Uint32(b[at:])), binary.NativeEndian.Uint32(b[at+4:])
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[at+12:]))
			if mask&unix.IN_Q_OVERFLOW != 0 {
				for _, name := range w.names {
					list = append(list, name)
				}
			}
			if name, ok := w.names[wd]; ok && mask&unix.IN_MODIFY != 0 {
				list = append(list, name)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// Close ends the watch.
func (w *Writes) Close() error { return unix.Close(w.fd) }
