package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Files in a VM's directory.
const (
	LockFile   = "engine"       // holds the engine's process id, and its lock while it lives
	SocketFile = "control.sock" // of the monitor
	// FactsFile tells `cloister ps` what the ledger does not know, when the monitor is not there to be asked.
	FactsFile = "vm.json"
	RingsDir  = "ring" // links to the memory of the VM's rings, by name
)

// The logs of patches in the state directory: one file for each name of a VM.
const (
	PatchDir    = "patch"
	PatchSuffix = ".jsonl"
)

// ValidRing reports whether a ring may have that name: it is one component of paths here and in the guest.
func ValidRing(name string) bool {
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return len(name) >= 1 && len(name) <= 32
}

// RunDir is where VMs and leases are found. The places are tried in this order; the environment's CLOISTER_RUN_DIR comes first.
func RunDir() (string, error) {
	dir := os.Getenv("CLOISTER_RUN_DIR")
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/run/cloister"
	case os.Getenv("XDG_RUNTIME_DIR") != "":
		dir = filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "cloister")
	default:
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("cloister-%d", os.Getuid()))
		if err := ownDir(dir); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("run directory: %w: set CLOISTER_RUN_DIR to a directory you can write", err)
	}
	return dir, nil
}

// PatchLog is where the patches of VMs of that name are logged, across runs. The places are tried in this order; the environment's
// CLOISTER_STATE_DIR comes first. Neither the file nor its directory need be there.
func PatchLog(name string) (string, error) {
	dir := os.Getenv("CLOISTER_STATE_DIR")
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/lib/cloister"
	case filepath.IsAbs(os.Getenv("XDG_STATE_HOME")): // others are to be ignored (XDG Base Directory Specification)
		dir = filepath.Join(os.Getenv("XDG_STATE_HOME"), "cloister")
	default:
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("state directory: %w: set CLOISTER_STATE_DIR to a directory you can write", err)
		}
		dir = filepath.Join(home, ".local", "state", "cloister")
	}
	return filepath.Join(dir, PatchDir, name+PatchSuffix), nil
}

// ownDir makes a directory where everybody may make one, and makes sure that it is ours.
func ownDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("run directory: %w: set CLOISTER_RUN_DIR to a directory you can write", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("run directory %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("run directory %s is not yours alone: remove it, or set CLOISTER_RUN_DIR", dir)
	}
	return nil
}

// NewVMDir makes the directory of one VM; its lock shows that the engine lives.
func NewVMDir(dir, name string) (vm string, lock *os.File, err error) {
	d := filepath.Join(dir, "vm", name)
	if err := os.MkdirAll(filepath.Dir(d), 0o755); err != nil {
		return "", nil, fmt.Errorf("run directory: %w", err)
	}
	// One at a time, or two runs of one name could each take the other's directory for a dead VM's.
	all, err := LockVMs(filepath.Dir(d))
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	for range 2 {
		err := os.Mkdir(d, 0o755)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) {
			return "", nil, fmt.Errorf("run directory: %w", err)
		}
		if EngineLives(d) {
			return "", nil, fmt.Errorf("there is a VM %q already: choose another --name", name)
		}
		if err := os.RemoveAll(d); err != nil { // left by a kill -9
			return "", nil, fmt.Errorf("remove what a dead VM left: %w", err)
		}
	}
	f, err := lockDir(d)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(d)) // nobody else will: no engine stands in it
	}
	return d, f, nil
}

// lockDir puts the engine's lock into a new directory. It gets its name when it is locked and whole: `cloister ps` tries the lock of what it finds.
func lockDir(d string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(d, "engine.new"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, errors.Join(fmt.Errorf("run directory: %w", err), f.Close())
	}
	if err := os.Rename(f.Name(), filepath.Join(d, "engine")); err != nil {
		return nil, errors.Join(fmt.Errorf("run directory: %w", err), f.Close())
	}
	return f, nil
}

// LockVMs keeps others from making and removing directories of VMs until the file is closed.
func LockVMs(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// RemoveDead removes the directory of a VM whose engine has ended, or is about to: a process that was
// killed closes its socket before it drops its lock. By now the directory may be another VM's of that name.
func RemoveDead(d string, engine int) error {
	all, err := LockVMs(filepath.Dir(d))
	if err != nil {
		return err
	}
	defer all.Close()
	if Fact(filepath.Join(d, "engine")) != strconv.Itoa(engine) {
		return nil
	}
	return os.RemoveAll(d)
}

// EngineLives looks whether the engine of a VM directory holds its lock.
func EngineLives(d string) bool {
	f, err := os.Open(filepath.Join(d, "engine"))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// Clocksource is the kernel's. Only with "tsc" does its vDSO read the clock without a system call.
func Clocksource() string {
	return Fact("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

// Fact is the trimmed content of a file of the kernel's, empty where it cannot be read.
func Fact(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "" // not there: not known, and shown so
	}
	return strings.TrimSpace(string(b))
}
