package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cloister-vmm/cloister/patch"
	"golang.org/x/sys/unix"
)

// Tail is how a log ends.
type Tail struct {
	Head Hash  // of its last line; zero: it has none
	Torn int   // bytes that a crash left of a line behind it; 0: none
	Size int64 // of the file, bytes
}

// TornText says what is wrong behind the last line, and what became of it, in one line; empty when nothing is.
func (t *Tail) TornText(path string) string {
	if t.Torn == 0 {
		return ""
	}
	return fmt.Sprintf("patch log %s: a crash left %d bytes of a line at byte %d; they are kept and chained in, and the log goes on behind them", path, t.Torn, t.Size-int64(t.Torn))
}

// Append adds a record and returns the log as it found it and the hash of the new line. The file is made, mode 0600, when it is
// not there; its directory must be. It waits while another process appends. When it fails nothing was appended.
func Append(path string, r *patch.Record) (before Tail, head Hash, err error) {
	f, err := lock(path)
	if err != nil {
		return before, head, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	before, prev, end, err := tail(f)
	if err != nil {
		return before, head, fmt.Errorf("patch log %s: %w", path, err)
	}
	line, head, err := encode(prev, r)
	if err == nil {
		err = add(f, before.Size, append(end, line...))
	}
	if err != nil {
		return before, head, fmt.Errorf("patch log %s: %w", path, err)
	}
	return before, head, nil
}

// Check looks whether a record could be appended, and makes the file if it is not there.
func Check(path string) (t Tail, err error) {
	f, err := lock(path)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if t, _, _, err = tail(f); err != nil {
		return t, fmt.Errorf("patch log %s: %w", path, err)
	}
	return t, nil
}

// Head gives the hash of a log's last line; zero: there is no line, or no log.
func Head(path string) (h Hash, err error) {
	r, err := Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	last, _, err := lastLine(r, r.Size())
	if err != nil || last == nil {
		return h, err
	}
	l, err := parse(last)
	if err != nil {
		return h, fmt.Errorf("patch log %s: its last line was changed (%w)", path, err)
	}
	return l.Hash, nil
}

// lock opens the log for appending, and keeps others from it until it is closed.
func lock(path string) (f *os.File, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND|unix.O_NONBLOCK, 0)
	made := false
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
		made = true
	}
	if err != nil {
		return nil, fmt.Errorf("patch log: %w", err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = errors.New("not a regular file: choose another with --patch-log")
	default:
		err = flock(f, unix.LOCK_EX)
	}
	if err == nil && made {
		err = syncDir(filepath.Dir(path)) // or a crash could take the whole file, and its first line with it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("patch log %s: %w", path, err), f.Close())
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("lock: %w", err)
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// add writes at the end of a file of that size. What could not be written whole, or not to the disk, is taken off again:
// the lock is held, so it is all ours.
func add(f *os.File, size int64, b []byte) error {
	_, err := f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Truncate(size))
	}
	return nil
}

// tail looks at the last line, and tells what the next one is chained to and what must be written before it.
func tail(f *os.File) (t Tail, prev Hash, end []byte, err error) {
	if t.Size, err = f.Seek(0, io.SeekEnd); err != nil {
		return t, prev, nil, err
	}
	last, torn, err := lastLine(f, t.Size)
	if err != nil {
		return t, prev, nil, err
	}
	if last != nil {
		l, err := parse(last)
		if err != nil {
			return t, prev, nil, fmt.Errorf("its last line was changed (%w): find out with cloister patch --verify-log, move the log aside, and patch again", err)
		}
		t.Head = l.Hash
	}
	if len(torn) == 0 {
		return t, t.Head, nil, nil
	}
	// Only the end of the line may be missing.
	if l, err := parse(torn); err == nil && l.Prev == t.Head {
		t.Head = l.Hash
		return t, t.Head, []byte("\n"), nil
	}
	t.Torn = len(torn)
	return t, chainTorn(t.Head, torn), []byte("\n"), nil
}

// lastLine gives the last line that has an end, nil if there is none, and what stands behind it.
func lastLine(f io.ReaderAt, size int64) (last, torn []byte, err error) {
	for n := int64(64 << 10); ; n *= 2 {
		n = min(n, size)
		b := make([]byte, n)
		if _, err := f.ReadAt(b, size-n); err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, err
		}
		end := bytes.LastIndexByte(b, '\n')
		begin := -1
		if end >= 0 {
			begin = bytes.LastIndexByte(b[:end], '\n')
		}
		switch {
		case end >= 0 && (begin >= 0 || n == size):
			return b[begin+1 : end], b[end+1:], nil
		case n >= 2*MaxLine:
			return nil, nil, fmt.Errorf("no line has more than %d bytes, and its last one does: move it aside, and patch again", MaxLine)
		case n == size:
			return nil, b, nil
		}
	}
}

// Reader reads a log as it was when it was opened.
type Reader struct {
	*io.SectionReader
	f *os.File
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }

var errNoFile = errors.New("not a regular file")

// Open opens a log for reading, as it is at this moment: whole lines, unless it is torn or spoilt. Lines that are appended
// later are not seen, and whoever reads slowly keeps nobody from appending.
func Open(path string) (*Reader, error) {
	st, err := os.Stat(path) // first: to open a device can be to use it
	if err != nil {
		return nil, fmt.Errorf("patch log: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("patch log %s: %w", path, errNoFile)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a FIFO by now, which must not wait for its writer
	if err != nil {
		return nil, fmt.Errorf("patch log: %w", err)
	}
	if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
		err = errNoFile
	}
	if err == nil {
		err = flock(f, unix.LOCK_SH)
	}
	if err == nil {
		st, err = f.Stat()
	}
	if err == nil && st.Size() == 0 {
		// What the kernel makes up when it is read has no size (/proc): it would pass for an empty log.
		if _, e := f.ReadAt(make([]byte, 1), 0); !errors.Is(e, io.EOF) {
			err = errNoFile
		}
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("patch log %s: %w", path, err), f.Close())
	}
	return &Reader{io.NewSectionReader(f, 0, st.Size()), f}, nil
}
