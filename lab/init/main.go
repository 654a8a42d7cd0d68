// Init is process 1 of a lab machine: it prepares the machine, does the job that
// the host put into the initramfs, and switches the machine off.
//
// It is two processes. Process 1 only reaps orphans, so that a test which looks
// for processes left behind sees none of its own making; the worker, the same
// binary, does the rest. Busybox's init could reap as well, but needs an inittab,
// a shell and a way to hand over the job.
package main

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, "lab: init:", err)
			os.Exit(1)
		}
		return
	}
	if err := reap(); err != nil {
		fmt.Fprintln(os.Stderr, "lab: init:", err)
	}
	unix.Sync()
	// The host takes the machine's end without a "done" for a failure, so there
	// is nothing to report here but that it cannot even be switched off.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "lab: init: power off:", err)
	}
	select {} // process 1 must not end: that is a kernel panic
}

// reap starts the worker and waits for every process until the worker has ended.
func reap() error {
	p, err := syscall.ForkExec("/init", []string{"lab-worker"}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == p && ws.ExitStatus() != 0:
			return fmt.Errorf("the worker ended with status %d, signal %v", ws.ExitStatus(), ws.Signal())
		case pid == p:
			return nil
		}
	}
}
