package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// refused runs a command line that must fail with one clear line and leave nothing.
func (b *box) refused(status int, words []string, args ...string) {
	b.t.Helper()
	r := b.cloister(args...)
	b.oneLine(fmt.Sprintf("%q", args), r, status, words)
}

func (b *box) oneLine(what string, r result, status int, words []string) {
	b.t.Helper()
	if r.status != status {
		b.t.Errorf("%.300s: status %d, want %d; %.300q", what, r.status, status, r.err)
	}
	if r.out != "" || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "cloister: ") || len(r.err) > 1200 {
		b.t.Errorf("%.300s: want one line on stderr: stdout %q, stderr %.500q", what, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			b.t.Errorf("%.300s: does not say %q: %.500q", what, w, r.err)
		}
	}
	if left := b.left(); len(left) > 0 {
		b.t.Errorf("%.300s: leaves %q", what, left)
	}
}

// Command lines that make no sense, on any machine.
func TestBadOptions(t *testing.T) {
	b := newBareBox(t)
	for _, c := range []struct {
		args  string
		words string
	}{
		{"fly", "fly|cloister help"}, {"run", "no program|@spin"}, {"run --nonsense @spin", "nonsense|cloister run -h"},
		{"run --cpu one @spin", "cpu|number of one CPU"}, {"run --cpu -1 @spin", "cpu"}, {"run --cpu 1,2 @spin", "number of one CPU"},
		{"run --memory lots @spin", "memory|512M"}, {"run --memory 1K @spin", "--memory|12M|28G"}, {"run --memory 900T @spin", "--memory|28G"},
		{"run --memory 99999999999999999999G @spin", "memory"}, {"run --memory -1 @spin", "memory"}, {"run --memory 16777216T @spin", "memory"},
		{"run --budget nonsense @spin", "budget|nonsense=0"}, {"run --budget syscal=0 @spin", "syscal|valid:"},
		{"run --budget syscall=-1 @spin", "syscall=-1"}, {"run --budget syscall<=ten @spin", "ten"}, {"run --budget max=5 @spin", "max=5|us"},
		{"run --budget syscall=0,,total=0 @spin", "empty clause"}, {"run --budget seal=0 @spin", "seal"}, {"run --budget syscall=0,syscall=1 @spin", "twice"},
		{"run --budget syscall>3 @spin", "<="}, {"run --on-break explode @spin", "explode|report, stop, kill or signal=N"},
		{"run --on-break signal=0 @spin", "signal=0"}, {"run --on-break signal=99 @spin", "signal=99|from 1 to 64"}, {"run --on-break signal=NONE @spin", "NONE"},
		{"run --seal never @spin", "never|first-write"}, {"run --net bridge @spin", "bridge|host or none"}, {"run --net= @spin", "--net is given"}, {"run --fifo 100 @spin", "100|1 to 99"}, {"run --fifo -3 @spin", "1 to 99"},
		{"run --for -3s @spin", "-3s"}, {"run --for soon @spin", "soon"}, {"run --metrics nowhere @spin", "nowhere|HOST:PORT"}, {"run --metrics :99999 @spin", "99999"},
		{"run --name a/b @spin", "a/b|slash"}, {"run --name .. @spin", "name"}, {"run --ro /no/such/dir @spin", "/no/such/dir"},
		{"run --ring out @spin", "ring|NAME=SIZE"}, {"run --ring out=3000 @spin", "ring|power of two|4K"}, {"run --ring out=2G @spin", "1G"}, {"run --ring a/b=4K @spin", "letters"},
		{"run --ring =4K @spin", "NAME=SIZE"}, {"run --ring a=4K --ring a=8K @spin", "already"}, {"run --ring out=lots @spin", "512M"}, {"run --ring out=4K --hugepages @spin", "--hugepages"},
		{"run --cpu", "cpu"}, {"ps --nonsense", "nonsense"}, {"patch", "say what to do"}, {"patch nobody --list", "nobody"}, {"patch nobody --verify-log", "nobody"}, {"stats nobody", "nobody"}, {"stop nobody", "nobody"},
	} {
		b.refused(125, strings.Split(c.words, "|"), strings.Fields(c.args)...)
	}
	monitor := filepath.Join(filepath.Dir(b.bin), "cloister-monitor")
	b.oneLine("no command", b.do(process{argv: []string{monitor}}), 125, []string{"not by hand", "cloister help"})
	b.oneLine("no socket", b.do(process{argv: []string{monitor, "monitor-process"}}), 125, []string{"not by hand"})
	b.refused(127, []string{"@nonsense", "@jitter"}, "run", "@nonsense")
	b.refused(127, []string{"--count 0"}, "run", "@exits", "--count", "0")
	b.refused(127, []string{"-what", "--count"}, "run", "@exits", "--what")
	b.refused(127, []string{"PATH", "./no-such-program"}, "run", "--", "no-such-program")
	if r := b.cloister(); r.status != 125 || !strings.Contains(r.err, "cloister run") {
		t.Errorf("no command: %+v", r)
	}
	for _, args := range []string{"help", "--help", "-h", "run -h", "run --help", "ps -h", "stats -h", "stop -h", "version"} {
		if r := b.cloister(strings.Fields(args)...); r.status != 0 || r.err != "" || len(r.out) < 10 {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

// patch changes words of a good ELF.
func patch(elf []byte, changes map[int][]byte) []byte {
	p := append([]byte{}, elf...)
	for at, b := range changes {
		copy(p[at:], b)
	}
	return p
}

func u16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// Offsets in an ELF64 header and a program header (ELF-64 object file format).
const (
	eType, eMachine, eEntry, ePhoff, ePhentsize, ePhnum    = 16, 18, 24, 32, 54, 56
	pType, pFlags, pOffset, pVaddr, pFilesz, pMemsz, pSize = 0, 4, 8, 16, 32, 40, 56
	ehdr                                                   = 64
)

// interpreter is what a dynamic program of this kind of machine names.
const interpreter = "/lib64/ld-linux-x86-64.so.2"

// dynamic makes of a static ELF one whose first segment names the interpreter (PT_INTERP). A machine's own programs
// need not be dynamic: busybox is not.
func dynamic(elf []byte) []byte {
	const ptInterp = 3
	return append(patch(elf, map[int][]byte{
		ehdr + pType: u32(ptInterp), ehdr + pOffset: u64(uint64(len(elf))), ehdr + pFilesz: u64(uint64(len(interpreter) + 1)),
	}), interpreter+"\x00"...)
}

// Files that are no program for Cloister.
func TestBadPrograms(t *testing.T) {
	b := newBox(t)
	good, err := workload.ELF("@fault:ud", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if phoff := binary.LittleEndian.Uint64(good[ePhoff:]); phoff != ehdr {
		t.Fatalf("the program headers lie at %d", phoff)
	}
	at := func(segment, field int) int { return ehdr + segment*pSize + field }
	loads := 0
	for i := range int(binary.LittleEndian.Uint16(good[ePhnum:])) {
		if binary.LittleEndian.Uint32(good[at(i, pType):]) == 1 && i == loads {
			loads++
		}
	}
	if loads < 2 {
		t.Fatalf("%d segments to load", loads)
	}
	first := binary.LittleEndian.Uint64(good[at(0, pVaddr):])
	if r := b.cloister("run", "--quiet", b.program("good", good)); r.status != 132 {
		t.Fatalf("the good one: %+v", r)
	}
	for _, c := range []struct {
		name  string
		data  []byte
		words string
	}{
		{"empty", nil, "empty"},
		{"one-byte", []byte{0x7f}, "ELF"},
		{"script", []byte("#!/bin/sh\necho hello\n"), "script|/bin/sh"},
		{"text", []byte("hello, this is a text, long enough to hold the header of an ELF file, it is\n"), "not an ELF"},
		{"elf32", patch(good, map[int][]byte{4: {1}}), "32"},
		{"big-endian", patch(good, map[int][]byte{5: {2}}), "endian"},
		{"arm", patch(good, map[int][]byte{eMachine: u16(183)}), "machine|AARCH64"},
		{"i386", patch(good, map[int][]byte{eMachine: u16(3)}), "machine"},
		{"object", patch(good, map[int][]byte{eType: u16(1)}), ""},
		{"core", patch(good, map[int][]byte{eType: u16(4)}), ""},
		{"dynamic", dynamic(good), interpreter + "|static"},
		{"no-segments", patch(good, map[int][]byte{ePhnum: u16(0)}), ""},
		{"many-segments", patch(good, map[int][]byte{ePhnum: u16(0xfffe)}), ""},
		{"headers-beyond", patch(good, map[int][]byte{ePhoff: u64(1 << 62)}), ""},
		{"headers-wrap", patch(good, map[int][]byte{ePhoff: u64(^uint64(0) - 63)}), ""},
		{"header-size", patch(good, map[int][]byte{ePhentsize: u16(1)}), ""},
		{"huge-file-size", patch(good, map[int][]byte{at(1, pFilesz): u64(1 << 63), at(1, pMemsz): u64(1 << 63)}), ""},
		{"huge-memory-size", patch(good, map[int][]byte{at(1, pMemsz): u64(1 << 63)}), ""},
		{"file-over-memory", patch(good, map[int][]byte{at(1, pMemsz): u64(1)}), ""},
		{"offset-wraps", patch(good, map[int][]byte{at(1, pOffset): u64(^uint64(0) - 4095)}), ""},
		{"address-wraps", patch(good, map[int][]byte{at(1, pVaddr): u64(^uint64(0) - 4095)}), ""},
		{"address-low", patch(good, map[int][]byte{at(0, pVaddr): u64(0)}), ""},
		{"address-high", patch(good, map[int][]byte{at(1, pVaddr): u64(0x7fffc0000000)}), ""},
		{"overlap", patch(good, map[int][]byte{at(1, pVaddr): u64(first), at(1, pOffset): u64(0)}), "overlap"},
		{"write-and-execute", patch(good, map[int][]byte{at(0, pFlags): u32(7)}), ""},
		{"entry-nowhere", patch(good, map[int][]byte{eEntry: u64(0xdeadbeef000)}), "entry"},
		{"entry-in-data", patch(good, map[int][]byte{eEntry: good[at(1, pVaddr) : at(1, pVaddr)+8]}), ""},
	} {
		p := b.program(c.name, c.data)
		var words []string
		if c.words != "" {
			words = strings.Split(c.words, "|")
		}
		b.refused(126, append(words, p), "run", p)
	}
	for _, n := range []int{64, 80, 120, 200, 1000, 4096, 4097, 5000} {
		if n < len(good) {
			b.refused(126, nil, "run", b.program(fmt.Sprintf("cut-at-%d", n), good[:n]))
		}
	}
	b.refused(127, []string{"no such file"}, "run", "./nothere")
	b.refused(127, []string{"no such file"}, "run", b.work+"/no/dir/prog")
	b.refused(126, []string{"regular file"}, "run", b.work)
	plain := b.program("not-executable", good)
	if err := os.Chmod(plain, 0o644); err != nil {
		t.Fatal(err)
	}
	b.refused(126, []string{"not executable", "chmod +x"}, "run", plain)
	if err := unix.Mkfifo(b.work+"/fifo", 0o755); err != nil {
		t.Fatal(err)
	}
	b.refused(126, []string{"regular file"}, "run", b.work+"/fifo")
	if err := os.Symlink("loop", b.work+"/loop"); err != nil {
		t.Fatal(err)
	}
	b.refused(126, []string{"loop"}, "run", b.work+"/loop")
	b.refused(126, []string{"regular file"}, "run", "/dev/null")
	// The real thing: the dynamic program that this test is built with.
	if testenv.Has(testenv.Tool("gcc")) {
		b.refused(126, []string{"ld-linux", "static"}, "run", compile(t, "gcc", "dynamic", "crash.c", "-O0"))
	}
}

func (b *box) program(name string, data []byte) string {
	b.t.Helper()
	p := filepath.Join(b.work, name)
	if err := os.WriteFile(p, data, 0o755); err != nil {
		b.t.Fatal(err)
	}
	return p
}

// Places that cannot be written, ports that are taken, names that are taken, CPUs that are not there.
func TestBadPlaces(t *testing.T) {
	b := newBox(t, testenv.MultiCPU)
	for _, o := range []string{"--report", "--pprof", "--trace"} {
		b.refused(125, []string{o, "/no/such/dir/f", "choose a path"}, "run", o, "/no/such/dir/f", "@exits")
		b.refused(125, []string{o, b.work}, "run", o, b.work, "@exits")
		if files, err := os.ReadDir(b.work); err != nil || len(files) != 0 {
			t.Errorf("%s leaves %v, %v", o, files, err)
		}
	}
	keep := b.file("keep", "content")
	b.refused(125, nil, "run", "--report", keep, "--pprof", "/no/such/dir/f", "@exits")
	if data := string(must(os.ReadFile(keep))(t)); data != "content" {
		t.Errorf("a file was changed by a run that did not begin: %q", data)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b.refused(125, []string{"--metrics", l.Addr().String()}, "run", "--metrics", l.Addr().String(), "@exits")
	b.refused(125, []string{"CPU 8000 does not exist"}, "run", "--cpu", "8000", "@exits")
	one := b.do(process{argv: []string{"taskset", "-c", "0", b.bin, "run", "--cpu", "0", "@exits"}})
	b.oneLine("the only CPU", one, 125, []string{"CPU 0 is the only one"})
	b.runs = "/proc/nothing/here"
	r := b.cloister("run", "@exits")
	b.oneLine("run directory", r, 125, []string{"CLOISTER_RUN_DIR"})
	b.runs = t.TempDir()
	p := b.started("run", "--quiet", "--name", "taken", "@spin")
	p.running()
	if r := b.cloister("run", "--name", "taken", "@exits"); r.status != 125 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, `"taken"`) {
		t.Errorf("%+v", r)
	}
	if r := b.cloister("stop", "taken"); r.status != 0 {
		t.Errorf("%+v", r)
	}
	if r := p.wait(); r.status != 143 {
		t.Errorf("%+v", r)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Without /dev/kvm, or without the permission to use it.
func TestNoKVM(t *testing.T) {
	b := newBareBox(t)
	testenv.Need(t, testenv.Root, testenv.Tool("unshare"), testenv.Tool("bash"), testenv.Tool("setpriv"))
	if _, err := os.Stat("/dev/kvm"); err != nil {
		b.refused(125, []string{"/dev/kvm"}, "run", "@exits")
		return
	}
	// In a mount namespace of its own, where /dev holds nothing.
	r := b.do(process{argv: []string{"unshare", "-m", "bash", "-c", `mount -t tmpfs none /dev && exec "$0" run @exits`, b.bin}})
	b.oneLine("no /dev/kvm", r, 125, []string{"/dev/kvm"})
	r = b.do(process{argv: []string{"unshare", "-m", "bash", "-c", `mount --bind /dev/null /dev/kvm && exec "$0" run @exits`, b.bin}})
	b.oneLine("another device", r, 125, []string{"/dev/kvm"})
	for _, dir := range []string{shared, b.runs, filepath.Dir(b.runs), filepath.Dir(filepath.Dir(b.runs))} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat("/dev/kvm"); err == nil && fi.Mode()&0o006 != 0 {
		return // everybody may use it here
	}
	r = b.do(process{argv: []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", b.bin, "run", "@exits"}})
	b.oneLine("no permission", r, 125, []string{"/dev/kvm", "permission"})
}

// Small limits: a clear line, or a run that needs no more.
func TestSmallLimits(t *testing.T) {
	b := newBox(t, testenv.Tool("bash"))
	for _, c := range []struct {
		limit string
		fails bool
		words []string
	}{
		{"-v 2000000", true, []string{"ulimit -v"}},
		{"-f 100", true, []string{"ulimit -f"}},
		{"-n 12", true, nil},
		{"-l 64", false, nil},
		{"-s 256", false, nil},
		{"-c 0", false, nil},
		{"-t 20", false, nil},
	} {
		r := b.do(process{argv: []string{"bash", "-c", "ulimit " + c.limit + ` && exec "$0" run --quiet @exits --count 1`, b.bin}})
		switch {
		case c.fails:
			b.oneLine("ulimit "+c.limit, r, 125, c.words)
		case r.status != 0 || r.out+r.err != "":
			t.Errorf("ulimit %s: %+v", c.limit, r)
		}
	}
	// A report that nobody can read is not a reason to hang, nor to die silently.
	r := b.do(process{argv: []string{"bash", "-c", `"$0" run @exits --count 1 2>&- ; echo $?`, b.bin}})
	if r.out != "0\n" && r.out != "125\n" {
		t.Errorf("stderr closed: %+v", r)
	}
	// A device is written to, never replaced. (A private /dev, lest a mistake costs the machine its own.)
	testenv.Need(t, testenv.Root, testenv.Tool("unshare"))
	r = b.do(process{argv: []string{"unshare", "-m", "bash", "-c", `
		mkdir dev && mount -t tmpfs none dev && mknod dev/full c 1 7 && mknod dev/null c 1 3 && ln -s null dev/link || exit 1
		"$0" run --quiet --report dev/full @exits --count 1; echo $?
		"$0" run --quiet --report dev/null --pprof dev/link --trace dev/null @exits --count 1; echo $?
		[ -c dev/full ] && [ -c dev/null ] && [ -L dev/link ] && echo devices`, b.bin}})
	if r.out != "125\n0\ndevices\n" || !strings.Contains(r.err, "dev/full") || !strings.Contains(r.err, "no space left") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("reports to devices: %+v", r)
	}
}

// SIGKILL in the middle: of the engine, of the monitor, of both. Nothing stays but what the next run clears.
func TestKilled(t *testing.T) {
	b := newBox(t)
	monitor := func() int {
		// The guest may run before the monitor has its name: looked for until it has.
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			for _, line := range b.processes() {
				var pid int
				if _, err := fmt.Sscan(line, &pid); err == nil && strings.Contains(line, "cloister-monitor") {
					return pid
				}
			}
		}
		t.Fatalf("no monitor among %q", b.processes())
		return 0
	}
	kill := func(pid int) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	run := func() *background {
		p := b.started("run", "--name", "victim", "--", sealer(t), "1", "spin")
		p.running()
		return p
	}

	p := run()
	kill(p.cmd.Process.Pid)
	if r := p.wait(); r.status != 137 || !strings.Contains(r.err, "engine process ended without a word") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("engine killed: %+v", r)
	}
	b.noLeaks()

	p = run()
	kill(monitor())
	time.Sleep(100 * time.Millisecond)
	if unix.Kill(p.cmd.Process.Pid, 0) != nil {
		t.Fatal("the guest noticed that its monitor died")
	}
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := p.wait(); r.status != 143 || !strings.Contains(r.err, "there is no report") {
		t.Errorf("monitor killed: %+v", r)
	}
	b.noLeaks()

	p = run()
	kill(monitor())
	kill(p.cmd.Process.Pid)
	if r := p.wait(); r.status != 137 {
		t.Errorf("both killed: %+v", r)
	}
	if list := b.processes(); len(list) != 0 {
		t.Errorf("left running: %q", list)
	}
	if r := b.cloister("run", "--quiet", "--name", "victim", "@exits", "--count", "1"); r.status != 0 || r.err != "" {
		t.Errorf("the name is not free again: %+v", r)
	}
}
