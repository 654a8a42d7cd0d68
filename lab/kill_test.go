package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/lab/wire"
)

// Victims are this test binary again, told by the environment what to be.
const (
	victimVar = "LAB_TEST_VICTIM"
	markVar   = "LAB_TEST_MARK"  // inherited by all that a victim starts
	stallVar  = "LAB_TEST_STALL" // the download never ends
)

// victim does what a run of the lab does, with the slow and half-hearted tools of slowTools: fetch and unpack a
// kernel, make scratch, boot.
func victim(t *testing.T, cacheDir string) {
	c, err := OpenCache(cacheDir, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	k, err := c.Kernel(context.Background(), "linux-image-9")
	if err != nil {
		t.Fatal(err)
	}
	dir, release, err := scratch(cacheDir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	}()
	m, err := Lookup("svm")
	if err != nil {
		t.Fatal(err)
	}
	b := boot{machine: m, kernel: k.Image(), dir: dir, limit: limit{boot: time.Minute, silence: time.Minute, stop: time.Minute, answer: time.Second}}
	if err := watch(context.Background(), b, func(wire.Message) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

// slowTools puts into PATH an apt-get, a dpkg-deb and an emulator that write what they write in pieces, so that there
// is always something half done to be killed in.
func slowTools(t *testing.T) {
	t.Helper()
	// The package's body is 16 lines; its hash is of these.
	body := strings.Repeat("0123456789abcde\n", 16)
	fakeApt(t, body, true, false)
	dir := strings.SplitN(os.Getenv("PATH"), ":", 2)[0]
	old, err := os.ReadFile(filepath.Join(dir, "apt-get"))
	if err != nil {
		t.Fatal(err)
	}
	apt := strings.ReplaceAll(string(old), "x_1%3a2", "linux-image-9_1%3a2")
	apt = strings.Replace(apt, "case \"$*\" in\n", "case \"$*\" in\ndownload*--print-uris*) ;;\n"+
		"download*) for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo 0123456789abcde; sleep 0.02; [ -z \"$"+stallVar+"\" ] || exec sleep 60; done > linux-image-9_1%3a2_amd64.deb; exit 0;;\nesac\ncase \"$*\" in\n", 1)
	deb := "#!/bin/sh\nd=$(mktemp -d)\nmkdir -p $d/boot $d/lib/modules/9/kernel/virt\n" +
		"i=0; while [ $i -lt 30 ]; do echo module $i > $d/lib/modules/9/kernel/virt/m$i.ko; i=$((i+1)); done\n" +
		"echo kernel > $d/boot/vmlinuz-9\ntar -C $d -cf - . | while dd bs=4096 count=1 2>/dev/null | { head -c1 > $d/1; [ -s $d/1 ] && cat $d/1 - ; }; do sleep 0.02; done\nrm -rf $d\n"
	qemu := "#!/bin/sh\nsleep 0.3\necho '{\"Kind\":\"hello\"}' > /dev/fd/4\nsleep 0.3\necho '{\"Kind\":\"done\"}' > /dev/fd/4\n"
	for name, text := range map[string]string{"apt-get": apt, "dpkg-deb": deb, "qemu-system-x86_64": qemu} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// marked returns the processes that carry the mark.
func marked(t *testing.T, mark string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, d := range dirs {
		env, err := os.ReadFile(filepath.Join(d, "environ")) // of a process that is gone, or another user's: not ours
		if err != nil || !strings.Contains(string(env), markVar+"="+mark) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			t.Fatal(err)
		}
		if pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// whole fails the test if anything under its name in the cache is not whole.
func whole(t *testing.T, c *Cache) {
	t.Helper()
	debs, err := filepath.Glob(filepath.Join(c.dir, "packages", "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range debs {
		info, err := os.Stat(d)
		if err != nil || info.Size() != 256 {
			t.Errorf("%s is there with %d bytes of 256, %v", d, info.Size(), err)
		}
	}
	records, err := filepath.Glob(filepath.Join(c.dir, "packages", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		p, err := c.recorded(strings.TrimSuffix(filepath.Base(r), ".json"))
		if err == nil {
			err = c.verify(p)
		}
		if err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(c.dir, "unpacked", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		sums, err := readSums(d)
		if err == nil {
			err = verifySums(d, sums)
		}
		if err != nil || len(sums) != 31 {
			t.Errorf("%s: %d files of 31, %v", d, len(sums), err)
		}
	}
}

// A lab that is killed at any moment leaves no process and nothing half written under a name of the cache, and the
// next one works and sweeps what was left.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv(victimVar); dir != "" {
		victim(t, dir)
		return
	}
	// Busybox's dpkg-deb, head and tar would do for the tools, but not for the time limits of an emulated machine.
	testenv.Need(t, testenv.Tool("dpkg-query"))
	testenv.NeedLong(t)
	slowTools(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c, _ := openCache(t, dir)
	run := func(mark string) *exec.Cmd {
		cmd := exec.Command(self, "-test.run=^TestKilledAtAnyMoment$")
		cmd.Env = append(os.Environ(), victimVar+"="+dir, markVar+"="+mark, "TMPDIR="+t.TempDir())
		return cmd
	}
	begin := time.Now()
	if out, err := run("whole").CombinedOutput(); err != nil {
		t.Fatalf("a run that nobody kills: %v\n%s", err, out)
	}
	length := time.Since(begin)
	whole(t, c)

	signals := []os.Signal{syscall.SIGKILL, syscall.SIGTERM}
	for round := range 24 {
		if round%3 == 0 { // mostly there is something in the cache already, and sometimes not
			if err := errors.Join(os.RemoveAll(filepath.Join(dir, "packages")), os.RemoveAll(filepath.Join(dir, "unpacked"))); err != nil {
				t.Fatal(err)
			}
			c, _ = openCache(t, dir)
		}
		stall := ""
		if round%6 == 0 { // what it waits for does not end by itself
			stall = "1"
		}
		mark := fmt.Sprintf("round%d-%d", round, os.Getpid())
		cmd := run(mark)
		cmd.Env = append(cmd.Env, stallVar+"="+stall)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rand.Int64N(int64(length)))
		time.Sleep(after)
		if err := cmd.Process.Signal(signals[round%2]); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		var left []int
		for range 100 {
			if left = marked(t, mark); len(left) == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		for _, pid := range left {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			t.Errorf("killed after %v by %v: process %d is left: %q, %v", after, signals[round%2], pid, line, err)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				t.Error(err)
			}
		}
		whole(t, c)
	}
	if out, err := run("last").CombinedOutput(); err != nil {
		t.Fatalf("the run after all the killed ones: %v\n%s", err, out)
	}
	whole(t, c)
	for _, d := range []string{"tmp", "run"} {
		if left, err := os.ReadDir(filepath.Join(dir, d)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", d, left, err)
		}
	}
}

// A lab that is killed while go or gcc work leaves none of the compilers that those have started.
func TestKilledWhileItBuilds(t *testing.T) {
	const treeVar = "LAB_TEST_TREE"
	if os.Getenv(treeVar) != "" {
		cmd := command(t.Context(), "sh", "-c", "sleep 60 & echo; wait")
		cmd.Stdout = os.Stdout
		if err := runTree(cmd); err != nil {
			t.Fatal(err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		mark := fmt.Sprintf("tree%d-%d", sig, os.Getpid())
		cmd := exec.Command(self, "-test.run=^TestKilledWhileItBuilds$")
		cmd.Env = append(os.Environ(), treeVar+"=1", markVar+"="+mark)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); len(marked(t, mark)) < 4 && time.Now().Before(end); { // it, the shell, sleep, the guard
			time.Sleep(10 * time.Millisecond)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("nobody has killed it")
		}
		left := marked(t, mark)
		for end := time.Now().Add(20 * time.Second); len(left) > 0 && time.Now().Before(end); left = marked(t, mark) {
			time.Sleep(10 * time.Millisecond)
		}
		if len(left) > 0 {
			t.Errorf("%v: left behind: %v", sig, left)
		}
	}
	// One that ends by itself is not touched, nor is who has its number next.
	if err := runTree(command(t.Context(), "true")); err != nil {
		t.Error(err)
	}
	if err := runTree(command(t.Context(), "false")); err == nil {
		t.Error("false gives no error")
	}
}
