package running_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/vmm"
)

// Programs that pass safe points for ever, in each SDK, behind a quiet thread and a stop of their own. They end when a call gives what it must not.
const (
	sdkC = `#include <pthread.h>
#include <unistd.h>
#include "cloister_patch.h"
static void *sleeper(void *arg) { if (cloister_quiet(1) != 0) _exit(3); pause(); return arg; }
int main(void)
{
	pthread_t t;
	if (pthread_create(&t, 0, sleeper, 0) != 0 || cloister_sync_cores() != 0 || cloister_quiet(0) != 0)
		return 4;
	for (;;)
		cloister_safepoint();
}
`
	sdkRust = `fn main() {
    std::thread::spawn(|| { cloister::quiet(true).unwrap(); loop { std::thread::park() } });
    cloister::sync_cores().unwrap();
    cloister::quiet(false).unwrap();
    loop { cloister::safepoint() }
}
`
	sdkGo = `package main

import cloister "github.com/cloister-vmm/cloister/guest/sdk/go"

func main() {
	if err := cloister.SyncCores(); err != nil { panic(err) }
	for { cloister.Safepoint() }
}
`
)

// TestSafePointsOfTheSDKs: a program written with an SDK comes to its safe points when it is asked to, and goes on when it is let go. One of Go
// does not: the runtime's own threads do not come.
func TestSafePointsOfTheSDKs(t *testing.T) {
	for _, c := range []struct {
		name, missing string
		build         func(dir, out string) *exec.Cmd
		needs         []string
	}{
		{"c", "", func(dir, out string) *exec.Cmd {
			return exec.Command("gcc", "-O2", "-static", "-pthread", "-I../../guest/sdk/c", "-x", "c", "-o", out, write(t, dir, "sdk.c", sdkC))
		}, []string{"gcc"}},
		{"rust", "", func(dir, out string) *exec.Cmd {
			rlib := filepath.Join(dir, "libcloister.rlib")
			if b, err := exec.Command("rustc", "--edition=2021", "-O", "--crate-type=rlib", "--crate-name=cloister", "-o", rlib, "../../guest/sdk/rust/src/lib.rs").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			return exec.Command("rustc", "--edition=2021", "-O", "-Ctarget-feature=+crt-static", "--extern", "cloister="+rlib, "-o", out, write(t, dir, "sdk.rs", sdkRust))
		}, []string{"rustc", "gcc"}},
		{"go", "thread", func(dir, out string) *exec.Cmd {
			cmd := exec.Command("go", "build", "-o", out, write(t, dir, "main.go", sdkGo))
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			return cmd
		}, []string{"go"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			needs := []testenv.Requirement{testenv.KVM}
			for _, tool := range c.needs {
				needs = append(needs, testenv.Tool(tool))
			}
			testenv.Need(t, needs...)
			dir := t.TempDir()
			out := filepath.Join(dir, "program")
			if b, err := c.build(dir, out).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			m := startProgram(t, out)
			for end := time.Now().Add(20 * time.Second); !m.Patchable().SafePoints; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the program has no safe points")
				}
			}
			for number := range uint64(3) {
				m.Gather(number + 1)
				limit := 20 * time.Second
				if c.missing != "" {
					limit = 200 * time.Millisecond
				}
				missing := m.Await(time.Now().Add(limit))
				m.Scatter()
				if (missing == "") != (c.missing == "") || !strings.Contains(missing, c.missing) {
					t.Fatalf("patch %d: missing %q, want %q", number+1, missing, c.missing)
				}
			}
			select {
			case <-m.Done():
				t.Fatal("the program ended")
			default:
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startProgram runs a program until the test ends.
func startProgram(t *testing.T, name string) *vmm.Machine {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := vmm.NewGuestMemory(false)
	if err != nil {
		t.Fatal(err)
	}
	list, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	m, err := vmm.New(vmm.Config{
		Program: name, ExecFn: name, ELF: int(file.Fd()), ELFSize: info.Size(), Args: []string{name}, Cwd: "/", CPU: -1, CPUs: list,
		Housekeeping: list, Memory: 1 << 30, Seal: vmm.SealCall, Guest: fd, Stamp: func(string) {}, GapRecord: func(uint64) {},
		Ledgers: func(int) (*breaks.VCPU, error) { return new(breaks.VCPU), nil },
		Warn:    func(s string) { t.Log(s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := m.Enter(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-m.Done():
		default:
			if err := m.Stop("test", 0); err != nil {
				t.Error(err)
			}
			<-m.Done()
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		file.Close()
	})
	return m
}
