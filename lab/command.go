package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
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

// runTree is cmd.Run for a command of which children of its own may outlive it: the death signal reaches go and gcc, but not the compilers that they
// start. A shell waits beside them for the end of a pipe, which comes when this process is gone, and ends their group. It begins some hundred microseconds
// behind the command, whose children begin milliseconds behind.
func runTree(cmd *exec.Cmd) (err error) {
	if err := cmd.Start(); err != nil {
		return err
	}
	guard := exec.Command("sh", "-c", `read -r _; kill -9 -"$0"`, strconv.Itoa(cmd.Process.Pid))
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("watch over %s: %w", cmd.Path, err), cmd.Cancel(), cmd.Wait())
	}
	defer func() {
		err = errors.Join(err, guard.Process.Kill(), pipe.Close()) // in this order: the end of the pipe is its sign
		_ = guard.Wait()                                           // it was killed: its status says only that
	}()
	return cmd.Wait()
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

// fullDisk is the failure of a build for which nobody's code is to blame.
type fullDisk struct{ error }
