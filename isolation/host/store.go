package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// JournalDir is where the machine's one journal is. /run is a tmpfs nearly everywhere; where it is not, the
// journal names its boot.
const JournalDir = "/run/cloister-host"

const (
	journalFile = "journal"
	lockFile    = "lock"
	bootID      = "proc/sys/kernel/random/boot_id"
)

// store is the journal on disk, locked.
type store struct {
	state
	dir    string
	lock   *os.File
	f      *os.File // nil until something is written
	size   int64    // of its records
	spoilt error    // a record that was written in part could not be cut off
	point  func(string) error
}

// open locks the journal and replays it; one of another boot is void. Without a directory there is none yet:
// with make it is made.
func open(s System, dir string, create bool, w waiter) (*store, error) {
	if create {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, journalError(dir, err)
		}
	}
	flags := os.O_RDWR | os.O_CREATE
	if !create {
		flags = os.O_RDONLY
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), flags, 0o600) // or any user could hold it for ever
	if err != nil {
		if !create && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			// Without the lock a record may be half written: that is a torn end, which is passed over.
			j := &store{dir: dir, state: state{held: map[string]*held{}}}
			return j, j.load(s, false)
		}
		return nil, journalError(dir, err)
	}
	j := &store{dir: dir, lock: lock, state: state{held: map[string]*held{}}}
	busy, err := w.lock(lock, create)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if busy { // it is read as by those who have no right to the lock
		j.lock = nil
		return j, errors.Join(j.load(s, false), lock.Close())
	}
	if err := j.load(s, create); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return j, nil
}

// waiter is what somebody does while another process has the journal.
type waiter struct {
	stop <-chan struct{}
	tell func(file string)
}

const (
	lockPoll = 20 * time.Millisecond
	patience = 300 * time.Millisecond // that a reader waits: most owners of the lock have it for less
)

// lock takes the lock. Who only reads gives up after a moment, which is no error but busy; a writer has to wait, until
// he is stopped.
func (w waiter) lock(f *os.File, write bool) (busy bool, err error) {
	for waited := time.Duration(0); ; waited += lockPoll {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return false, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		case waited >= patience && !write:
			return true, nil
		case waited == patience && w.tell != nil:
			w.tell(f.Name())
		}
		select {
		case <-w.stop:
			return false, fmt.Errorf("stopped while another process had the host journal (%s): nothing was changed", f.Name())
		case <-time.After(lockPoll):
		}
	}
}

// journalError says why there can be no journal.
func journalError(dir string, err error) error {
	remedy := "host isolation needs root"
	if !errors.Is(err, fs.ErrPermission) {
		remedy = "host isolation needs a directory " + dir + " that it can write to"
	}
	return fmt.Errorf("host journal: %w: %s", err, remedy)
}

// load replays the file. With write it is made ready to be added to: a torn end is cut off, a void journal removed.
func (j *store) load(s System, write bool) error {
	name := filepath.Join(j.dir, journalFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("host journal: %w", err)
	}
	st, whole, err := parseJournal(b)
	now := Text(s, bootID)
	if err != nil && (st.boot == "" || st.boot == now || now == "") { // else the damage, as all of it, is of another boot
		return fmt.Errorf("host journal %s: %w: nothing was changed: put back by hand what its lines say was changed, then remove it (after a reboot it is void)", name, err)
	}
	if whole > 0 && now == "" {
		return fmt.Errorf("host journal %s: /%s cannot be read, so whether it is of this boot cannot be told: nothing was changed: make that file readable (mount /proc)", name, bootID)
	}
	if whole == 0 || st.boot != now {
		if !write {
			return nil
		}
		return j.remove() // never begun, or of another boot, which undid everything by itself
	}
	j.state = st
	if !write {
		return nil
	}
	if j.f, err = os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return fmt.Errorf("host journal: %w", err)
	}
	j.size = int64(whole)
	if whole < len(b) {
		if err := j.f.Truncate(int64(whole)); err != nil {
			return fmt.Errorf("host journal: cut off a torn record: %w", err)
		}
	}
	return nil
}

// errUnwritten: the disk, not the host, is what failed. What is in the journal already stands.
var errUnwritten = errors.New("make room there")

// add writes records to disk, all at once, and then to the state. If it cannot, the file is what it was.
func (j *store) add(s System, records ...*record) error {
	if len(records) == 0 {
		return nil
	}
	if j.spoilt != nil {
		return j.spoilt
	}
	if j.f == nil {
		if err := j.begin(s); err != nil {
			return err
		}
	}
	var lines []byte
	sum := j.sum
	for _, r := range records {
		line, next, err := r.encode(sum)
		if err != nil {
			return fmt.Errorf("host journal: %w", err)
		}
		lines, sum = append(lines, line...), next
	}
	_, err := j.f.Write(lines)
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		return j.cut(err)
	}
	j.size += int64(len(lines))
	j.sum = sum
	for _, r := range records {
		if err := j.take(r); err != nil {
			return fmt.Errorf("host journal: %w", err)
		}
	}
	return j.reached("journal " + records[0].Op)
}

// cut takes off what was written of records that could not be written whole: behind the beginning of a line nothing could be
// read again. If that fails too nothing more is written, so that it stays the end.
func (j *store) cut(why error) error {
	why = fmt.Errorf("host journal: %w: %w", why, errUnwritten)
	if err := j.f.Truncate(j.size); err != nil {
		why = fmt.Errorf("%w; nor can it be cut back: %w", why, err)
		j.spoilt = why
	}
	return why
}

// begin makes the file, with its first record, and its name durable.
func (j *store) begin(s System) error {
	f, err := os.OpenFile(filepath.Join(j.dir, journalFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("host journal: %w", err)
	}
	j.f = f
	boot := Text(s, bootID)
	if boot == "" {
		return fmt.Errorf("host journal: /%s cannot be read: without it a journal cannot be told from one of another boot", bootID)
	}
	if err := j.add(s, &record{Op: opOpen, Version: journalVersion, Boot: boot}); err != nil {
		return err
	}
	return syncDir(j.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("host journal: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove ends the journal: nothing of ours is left.
func (j *store) remove() error {
	err := os.Remove(filepath.Join(j.dir, journalFile))
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		return fmt.Errorf("host journal: %w", err)
	}
	if j.f != nil {
		err = j.f.Close()
	}
	j.f, j.state = nil, state{held: map[string]*held{}}
	return err
}

// close ends the use of the journal; it is removed when it says nothing any more.
func (j *store) close() error {
	if j.lock == nil {
		return nil
	}
	var err error
	if j.f != nil && len(j.claims) == 0 && len(j.held) == 0 {
		err = j.remove()
	}
	if j.f != nil {
		err = errors.Join(err, j.f.Close())
	}
	return errors.Join(err, j.lock.Close())
}

// reached is where a test may end the process.
func (j *store) reached(where string) error {
	if j.point == nil {
		return nil
	}
	return j.point(where)
}
