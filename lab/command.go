package lab

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// command makes a command that ends with this process, however that ends (PR_SET_PDEATHSIG, prctl(2)), and with
// ctx, together with what it started itself. Without either, a killed lab would leave a
// download or a compiler behind, which writes into a cache that the next lab has taken over.
//
// The death signal belongs to the thread that forked. Threads of a Go program end only with a goroutine that was locked
// to them, and the one such goroutine of the lab, which starts the emulator (start), outlives every command
// that was begun before it.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// workIn is the environment of a command whose temporary files are to be in dir: who is killed cannot remove them, and there
// they go with the run.
func workIn(dir string) []string {
	return append(os.Environ(), "TMPDIR="+dir, "GOTMPDIR="+dir)
}

// installer is a command that may not be killed in the middle of its work: the machine's package database would be
// left broken. It gets SIGINT, on which apt-get ends after the step that it is in.
func installer(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	return cmd
}
