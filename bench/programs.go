package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// prepare builds everything that is measured into a folder of its own.
func (b *bench) prepare() (err error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("go list -m: %w: run it inside the repository", err)
	}
	b.root = strings.TrimSpace(string(root))
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "cloister-bench-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(b.dir))
		}
	}()
	entries, hz, err := guestCPUID()
	if err != nil {
		return err
	}
	if hz == 0 {
		return errors.New("KVM_GET_TSC_KHZ: unknown: no time can be told")
	}
	b.hz = hz
	if err := os.WriteFile(b.path("layout.h"), []byte(layout(entries)), 0o644); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", b.path("")+"/", "./cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Dir = b.root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./cmd/...: %w: %s", err, bytes.TrimSpace(out))
	}
	for _, c := range [][]string{
		{"gcc", "floor.c", "floor"}, {"gcc", "exits.c", "exits", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns"},
		{"gcc", "hot.c", "hot"}, {"gcc", "clock.c", "clock"}, {"gcc", "hello.c", "hello-glibc"},
	} {
		if err := b.compile(c[0], c[1], c[2], c[3:]...); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) compile(cc, source, out string, flags ...string) error {
	args := append([]string{"-O2", "-Wall", "-static", "-no-pie", "-fno-pie", "-I", b.dir, "-o", b.path(out), filepath.Join(b.root, "bench", "c", source)}, flags...)
	if text, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", cc, source, err, bytes.TrimSpace(text))
	}
	return nil
}

// patience is how long any one program may take.
const patience = time.Minute

// run executes a program on any CPU and returns its standard output.
func (b *bench) run(name string, args ...string) ([]byte, error) {
	return b.runOn(-1, patience, name, args...)
}

// runOn executes a program that begins on one CPU (-1: any).
func (b *bench) runOn(cpu int, limit time.Duration, name string, args ...string) ([]byte, error) {
	return b.runAmong([]int{cpu}, limit, name, args...)
}

// runAmong executes a program that begins on some CPUs.
func (b *bench) runAmong(cpus []int, limit time.Duration, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := startOn(c, cpus...); err != nil {
		return nil, err
	}
	if err := c.Wait(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// startOn starts c with the affinity of some CPUs (none, or -1: any), which a process inherits from the thread that makes it. c
// ends with this process, however that ends: a load or a spinning guest would run for ever.
func startOn(c *exec.Cmd, cpus ...int) (err error) {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if filepath.Base(c.Path) == "cloister" {
		c.SysProcAttr.Pdeathsig = unix.SIGTERM // it has something to put back
	}
	if len(cpus) == 0 || cpus[0] < 0 {
		return c.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, few unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, cpu := range cpus {
		few.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &few); err != nil {
		return fmt.Errorf("pin to CPUs %v: %w", cpus, err)
	}
	defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &old)) }()
	return c.Start()
}

// cloister runs `cloister run`, again while another Cloister has the core.
func (b *bench) cloister(limit time.Duration, args ...string) (out []byte, err error) {
	return b.cloisterAmong(nil, limit, args...)
}

// cloisterAmong is cloister with no more than some CPUs for all its threads (nil: any).
func (b *bench) cloisterAmong(cpus []int, limit time.Duration, args ...string) (out []byte, err error) {
	for range 30 {
		out, err = b.runAmong(cpus, limit, b.path("cloister"), append([]string{"run"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "in use") {
			return out, err
		}
		time.Sleep(2 * time.Second)
	}
	return out, err
}

// housekeeping is a CPU that is not the guests'.
func (b *bench) housekeeping() int {
	if b.cpu == 0 {
		return 1
	}
	return 0
}

func (b *bench) engine(s settings) ([]byte, error) { return b.run(b.self, s.command(engineCommand)...) }

// floor runs c/floor.c beside the same load as an engine has inside.
func (b *bench) floor(fifo int, load bool, args ...string) (out []byte, err error) {
	if load {
		c := exec.Command(b.self, settings{cpu: b.cpu}.command(loadCommand)...)
		if err := startOn(c); err != nil {
			return nil, err
		}
		defer func() {
			err = errors.Join(err, c.Process.Kill())
			c.Wait() // it was killed: its status says only that
		}()
		time.Sleep(500 * time.Millisecond)
	}
	return b.run(b.path("floor"), append([]string{"-c", fmt.Sprint(b.cpu), "-f", fmt.Sprint(fifo), "-k", fmt.Sprint(b.housekeeping())}, args...)...)
}
