package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// mounts are made in this order. The flags are what systemd gives the same
// file systems, so that a test meets nothing laxer than on a real host.
var mounts = []struct {
	kind, dir string
	flags     uintptr
	data      string
}{
	{"proc", "/proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,ptmxmode=666"},
	{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, ""},
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tracefs", "/sys/kernel/tracing", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"debugfs", "/sys/kernel/debug", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	{"bpf", "/sys/fs/bpf", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, "mode=700"},
}

func mountAll() error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.dir, err)
		}
	}
	// What udev makes on a real host.
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return os.MkdirAll(wire.OutDir, 0o755)
}

func load(m wire.Module) error {
	f, err := os.Open(m.Path)
	if err != nil {
		return err
	}
	err = unix.FinitModule(int(f.Fd()), m.Params, 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return errors.Join(fmt.Errorf("load %s %s: %w", filepath.Base(m.Path), m.Params, err), f.Close())
	}
	return f.Close()
}

// loopbackUp lets tests listen on 127.0.0.1, as on any host.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	req, err := unix.NewIfreq("lo")
	if err == nil {
		req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		err = unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
	}
	if err := errors.Join(err, unix.Close(s)); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// hello collects what a reader of the results wants to know of the machine.
func hello() wire.Message {
	m := wire.Message{Kind: wire.KindHello, Facts: map[string]string{}}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		m.Text = unix.ByteSliceToString(u.Release[:])
	}
	for name, path := range map[string]string{
		"online":       "/sys/devices/system/cpu/online",
		"isolated":     "/sys/devices/system/cpu/isolated",
		"nohz_full":    "/sys/devices/system/cpu/nohz_full",
		"clocksource":  "/sys/devices/system/clocksource/clocksource0/current_clocksource",
		"npt":          "/sys/module/kvm_amd/parameters/npt",
		"ept":          "/sys/module/kvm_intel/parameters/ept",
		"unrestricted": "/sys/module/kvm_intel/parameters/unrestricted_guest",
	} {
		if b, err := os.ReadFile(path); err == nil { // absent: not a fact of this machine
			m.Facts[name] = strings.TrimSpace(string(b))
		}
	}
	_, err := os.Stat("/dev/kvm")
	m.Facts["kvm"] = fmt.Sprint(err == nil)
	return m
}

// saveFiles writes OutDir to the disk as a tar archive. The disk is larger than
// any honest set of results; a write past its end is an error of the job.
func saveFiles(disk string) (err error) {
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("bring files back: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			err = fmt.Errorf("bring files back on %s: %w", disk, err)
		}
	}()
	w := tar.NewWriter(f)
	if err := w.AddFS(regularOnly{os.DirFS(wire.OutDir)}); err != nil {
		return err
	}
	return w.Close()
}

// regularOnly hides what AddFS refuses: sockets and devices that a test left behind.
type regularOnly struct{ fs.FS }

func (r regularOnly) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := fs.ReadDir(r.FS, name)
	kept := all[:0]
	for _, e := range all {
		if e.IsDir() || e.Type().IsRegular() {
			kept = append(kept, e)
		}
	}
	return kept, err
}
