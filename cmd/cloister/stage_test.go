package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/tools/txtar"
)

// stage is a machine's /sys, /proc/sys and /proc/irq, recorded, laid over those of a mount and PID namespace of our
// own: the built programs write what they would write, threads and leases outside are not seen, and nothing of this machine is
// changed. It lacks what only a kernel does, so cpusets are refused there; that is the lab's to show.
const stage = `set -eu
mount --make-rprivate /
mount -t proc proc /proc
for d in proc/irq proc/sys sys; do mount --bind "$STAGE/$d" /$d; done
mount --bind "$STAGE/latency" /dev/cpu_dma_latency
mount -t tmpfs run /run
for d in /sys /proc/sys /proc/irq; do
	echo on stage >$d/.stage
	[ -f "$STAGE$d/.stage" ] || { echo "$d is the machine's own"; exit 99; }
	rm $d/.stage
done
set +e
snapshot() { (cd "$STAGE" && find sys proc -type f | sort | xargs sha256sum) >"/run/$1"; }
same() {
	snapshot now
	cmp -s /run/before /run/now || { echo "$1: not as it was:"; diff /run/before /run/now; }
	[ ! -f /run/cloister-host/journal ] || echo "$1: a journal is left"
}
applied() { i=0; until [ "$(cat /proc/sys/vm/stat_interval)" = 120 ]; do i=$((i + 1)); [ $i -lt 300 ] || { echo "it does not apply:"; cat /run/out; exit 1; }; sleep 0.1; done; sleep 1; }
begin() { cloister run --quiet --cpu 1 --isolate --seal start --for 60s @spin >/run/out 2>&1 & e=$!; applied; m=$(pgrep -P $e -f monitor-process); }
finish() { wait $e 2>/dev/null; [ $? = $1 ] || echo "it ended with another status than $1"; while kill -0 $m 2>/dev/null; do sleep 0.1; done; }
snapshot before
`

// onStage runs a script there; whatever it prints is what went wrong.
func onStage(t *testing.T, script string) {
	t.Helper()
	testenv.Need(t, testenv.KVM, testenv.Root, testenv.MultiCPU, testenv.Tool("sha256sum"), testenv.Tool("pgrep"))
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	a, err := txtar.ParseFile("../../isolation/host/testdata/nested.txtar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put := func(name string, text []byte) {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, text, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range a.Files {
		if strings.HasPrefix(f.Name, "sys/") || strings.HasPrefix(f.Name, "proc/sys/") || strings.HasPrefix(f.Name, "proc/irq/") {
			put(f.Name, f.Data)
		}
	}
	for _, name := range []string{"proc/sys/kernel/random/boot_id", "proc/sys/vm/max_map_count", "proc/sys/vm/overcommit_memory"} {
		b, err := os.ReadFile("/" + name)
		if err != nil {
			t.Fatal(err)
		}
		put(name, b)
	}
	put("latency", nil)
	c := exec.Command("sh", "-c", stage+script)
	c.Env = []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH"), "STAGE=" + dir, "CLOISTER_RUN_DIR=/run/cloister"}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = 5 * time.Second
	end := time.AfterFunc(limit, func() { _ = c.Process.Kill() }) // it may have ended; as it is the first of its PID namespace, all end with it
	defer end.Stop()
	out, err := c.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// However a run with --isolate ends, every file is what it was.
func TestIsolatedRunGivesBack(t *testing.T) {
	for name, script := range map[string]string{
		"by itself":      `cloister run --quiet --cpu 1 --isolate --for 1s @spin >/run/out 2>&1 || cat /run/out; same end`,
		"ctrl-c":         `begin; kill -INT $e; finish 130; same ctrl-c`,
		"engine killed":  `begin; kill -9 $e; finish 137; same engine`,
		"monitor killed": `begin; kill -9 $m; sleep 0.5; kill -INT $e; finish 130; same monitor`,
		"crash":          `cloister run --quiet --cpu 1 --isolate @fault:pf >/run/out 2>&1; [ $? = 139 ] || cat /run/out; same crash`,
		"refused":        `cloister run --cpu 1 --isolate --require A @spin >/run/out 2>&1; [ $? = 125 ] && grep -q 'is of grade D' /run/out || cat /run/out; same refused`,
		"both killed": `begin; kill -STOP $m; kill -9 $e; kill -9 $m; finish 137
cloister host status | grep -q 'it has ended' || echo 'no claim of the dead is shown'
cloister run --quiet --cpu 1 --isolate --for 1s @spin 2>&1 | grep -q 'give them back first' || echo 'the core was given away again'
cloister host restore >/run/out 2>&1 || cat /run/out; same both`,
		"kept": `cloister run --quiet --cpu 1 --isolate --keep --for 1s @spin >/run/out 2>&1 || cat /run/out
[ "$(cat /proc/sys/vm/stat_interval)" = 120 ] || echo 'it was not kept'
cloister host restore --cpu 1 >/run/out 2>&1 || cat /run/out; same kept`,
	} {
		t.Run(name, func(t *testing.T) { onStage(t, script) })
	}
}

// The commands: apply, hold, restore; in use is not taken away.
func TestHostCommandsOnStage(t *testing.T) {
	onStage(t, `cloister host apply --cpu 1 >/run/out 2>&1 || cat /run/out
[ "$(cat /proc/irq/36/smp_affinity_list)" = 0 ] || echo 'IRQ 36 was not moved'
grep -q '^CPU 1 is of grade . now, because of ' /run/out && grep -q 'remains, grade D: tick: .*; only at boot' /run/out || { echo 'it does not say what remains:'; cat /run/out; }
cloister host apply --cpu 1 2>&1 | grep -q 'are isolated for' || echo 'applied twice'
cloister run --quiet --cpu 1 --for 4s @spin & e=$!
sleep 2
cloister host restore >/run/out 2>&1 && echo 'taken from a running VM'
wait $e || echo 'the run on an applied core failed'
cloister host restore >/run/out 2>&1 || cat /run/out
same commands
cloister host apply --cpu 1 --hold >/run/out 2>&1 & e=$!; m=$e
applied
ls -l /proc/$e/fd | grep -q cpu_dma_latency || echo 'the latency is not held'
kill -INT $e; finish 0
same hold
cloister host apply --cpu 1 --strict >/run/out 2>&1 && echo 'strict, and a refusal is borne'
same strict`)
}

// --hold gives back with a word on everything that it leaves, and with a status that says so; and it does not take a core from
// under a VM that was started there meanwhile.
func TestHoldGivesBackOnStage(t *testing.T) {
	onStage(t, `held() { cloister host apply --cpu 1 --hold >/run/out 2>&1 & e=$!; m=$e; applied; i=0
until ls -l /proc/$e/fd | grep -q cpu_dma_latency; do i=$((i + 1)); [ $i -lt 100 ] || { cat /run/out; exit 1; }; sleep 0.1; done; }
held
cloister host status | grep -q "process $e)" || echo 'the claim does not name the process'
echo 7 >/proc/sys/vm/stat_interval
kill -INT $e; finish 125
grep -q 'left alone: /proc/sys/vm/stat_interval: it was 1, we made it 120, and somebody has made it 7 since' /run/out || { echo 'it does not say what it left:'; cat /run/out; }
grep -q '1 settings were changed by somebody else' /run/out || { echo 'it does not say how many:'; cat /run/out; }
[ "$(cat /proc/sys/vm/stat_interval)" = 7 ] || echo 'it was overwritten'
echo 1 >/proc/sys/vm/stat_interval; same foreign
held
cloister run --quiet --cpu 1 --for 5s @spin >/run/vm 2>&1 & v=$!
sleep 2
kill -INT $e; finish 125
grep -q 'CPUs 1 are not given back: CPU 1 is in use by .*cloister host restore --cpu 1' /run/out || { echo 'it does not say why not:'; cat /run/out; }
[ "$(cat /proc/sys/vm/stat_interval)" = 120 ] || echo 'taken from a running VM'
wait $v || cat /run/vm
cloister host status | grep -q 'it has ended' || echo 'the claim is not shown as that of a dead process'
cloister host restore >/run/out 2>&1 || cat /run/out
same vm
held
kill -TERM $e; finish 0
grep -q 'given back for cloister host apply, CPUs 1' /run/out || { echo 'it does not say that it gave back:'; cat /run/out; }
same hold
cloister host apply --cpu 1 --hold --json >/dev/full 2>/run/out & e=$!; m=$e
applied
kill -INT $e; finish 125
same full`)
}

// What may not be written ends it with one line, before anything is; so does cloister run --isolate.
func TestHostReadOnlyOnStage(t *testing.T) {
	onStage(t, `mount -o remount,bind,ro /proc/sys
one() { [ $1 = 125 ] && [ "$(wc -l </run/out)" = 1 ] && grep -q "cannot write below /proc/sys (read-only file system, first /proc/sys/.*nothing was changed" /run/out || cat /run/out; }
cloister host apply --cpu 1 >/run/out 2>&1; one $?
cloister run --quiet --cpu 1 --isolate --for 1s @spin >/run/out 2>&1; one $?
cloister host apply --cpu 1 --dry-run >/run/out 2>&1 || cat /run/out
cloister host status | grep -q 'no CPU is isolated' || echo 'there is a claim'
[ "$(cat /proc/irq/36/smp_affinity_list)" = 0-1 ] || echo 'IRQ 36 was moved'
same read-only`)
}

// What is undone while a VM runs is said at once and in the report, and is not overwritten.
func TestDriftIsReported(t *testing.T) {
	onStage(t, `cloister run --cpu 1 --isolate --seal start --for 6s --report /run/r.json @spin >/run/out 2>&1 & e=$!
applied
echo 7 >/proc/sys/vm/stat_interval
echo 0-1 >/proc/irq/36/smp_affinity_list
echo 10000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
mkdir /proc/irq/99; echo 1 >/proc/irq/99/smp_affinity_list
printf '\000\224\065\167' >/dev/cpu_dma_latency
sleep 60 & t=$!
taskset -pc 1 $t >/dev/null
wait $e || cat /run/out
grep -q 'drift: the affinity of IRQ 36: /proc/irq/36/smp_affinity_list was 0, is 0-1' /run/out || { echo 'it was not said:'; cat /run/out; }
grep -q 'left alone: /proc/sys/vm/stat_interval: it was 1, we made it 120, and somebody has made it 7' /run/out || { echo 'it was overwritten, or not said:'; cat /run/out; }
grep -q '"was": "120"' /run/r.json || echo 'the report does not have it'
grep -q '"drift: the affinity of IRQ 36' /run/r.json || echo 'the certificate does not say so'
for want in "khugepaged's sleep: .* was 3600000, is 10000" 'IRQ 99: .* was not there, is 1' '/dev/cpu_dma_latency was 0, is 2000000000' "thread $t (sleep) may run there: /proc/$t/task/$t/status was not there, is 1"; do
	grep -q "drift: .*$want" /run/out || { echo "no $want:"; cat /run/out; }
done
kill $t
[ "$(cat /proc/sys/vm/stat_interval)" = 7 ] || echo 'it was overwritten'
rm -r /proc/irq/99
echo 10000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
echo 1 >/proc/sys/vm/stat_interval
same drift`)
}

// asking runs a program that asks to be sealed for each line that it gets. The stage is a host whose CPU 1 is of grade C once
// it is isolated: out of the scheduler's domains and without a tick.
const asking = `echo 1 >/sys/devices/system/cpu/isolated
echo 1 >/sys/devices/system/cpu/nohz_full
snapshot before
mkfifo /run/in
start() { : >/run/answers; cloister run --cpu 1 --isolate --report /run/r.json "$@" </run/in >/run/answers 2>/run/err & e=$!; exec 3>/run/in; applied; n=0; }
asked() { echo >&3; n=$((n + 1)); i=0; until [ "$(wc -l </run/answers)" = $n ] || [ $i = 300 ]; do i=$((i + 1)); sleep 0.1; done
	[ "$(tail -n 1 /run/answers)" = "$1" ] || { echo "answer $n: $(tail -n 1 /run/answers), want $1"; cat /run/err; }; }
disturb() { sleep 60 & t=$!; taskset -pc 1 $t >/dev/null; }
leave() { kill $t; wait $t 2>/dev/null; }
end() { exec 3>&-; wait $e; s=$?; [ $s = $1 ] || { echo "status $s, want $1"; cat /run/err; }; }
`

// A seal is refused while the core is not of the required grade, with EAGAIN to the program and the reason to the user; it is granted
// before, after, and where no grade is required.
func TestSealAgain(t *testing.T) {
	testenv.Need(t, testenv.KVM, testenv.Root, testenv.MultiCPU)
	prog := compile(t, "gcc", "sealing", "sealing.c", "-static")
	for name, script := range map[string]string{
		"required": `start --require C ` + prog + `
asked 0; disturb; asked -11; asked -11; leave; asked 0; end 0
grep -q "vCPU 0 was not sealed: --require C: CPU 1 is of grade D, not the C required, because of .*tasks.*; since the start: thread $t (sleep) may run there" /run/err || { echo 'not said:'; cat /run/err; }
[ "$(grep -c 'cloister: after .*was not sealed' /run/err)" = 1 ] || { echo 'said again:'; cat /run/err; }
grep -q '"require": "C",' /run/r.json && grep -q '"count": 2$' /run/r.json && grep -q '"seals": 2,' /run/r.json || { echo 'not in the report:'; cat /run/r.json; }
grep -q '"vCPU 0 was not sealed 2 times: ' /run/r.json || echo 'the certificate does not mind'
same required`,
		"not required": `start ` + prog + `
asked 0; disturb; asked 0; leave; asked 0; end 0
grep -q '"refused_seals": \[\]' /run/r.json && grep -q '"seals": 3,' /run/r.json || cat /run/r.json
same free`,
		"first write": `start --require C --seal first-write ` + prog + `
disturb; asked -11; asked -11; leave; asked 0; end 0
grep -q '"count": 3$' /run/r.json && grep -q '"seals": 1,' /run/r.json || { echo 'the first write is not refused once:'; cat /run/r.json; }
same write`,
		"no monitor": `start --require C ` + prog + `
m=$(pgrep -P $e -f monitor-process); asked 0; kill -9 $m; sleep 0.5; asked -11; end 125
same nobody`,
		"a budget that was never tested": `start --require C --budget total=0 ` + prog + `
disturb; asked -11; leave; end 125
grep -q 'is untested, which is not kept: .*vCPU 0 was not sealed: --require C' /run/err || cat /run/err
same budget`,
	} {
		t.Run(name, func(t *testing.T) { onStage(t, asking+script) })
	}
}

// A thread without a core of its own cannot be on one that is quiet enough.
func TestSealNeedsACore(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	prog := compile(t, "gcc", "placed", "placed.c", "-static", "-pthread")
	r, rep := b.reported("--cpu", "1", "--require", "D", "--", prog)
	if r.status != 0 || len(rep.RefusedSeals) != 1 || rep.RefusedSeals[0].CPU != nil || !strings.Contains(rep.RefusedSeals[0].Why, "no core of its own") {
		t.Errorf("%+v, %+v", r, rep.RefusedSeals)
	}
	for _, v := range rep.VCPUs {
		if v.Seals != 0 {
			t.Errorf("vCPU %d was sealed", v.ID)
		}
	}
	// A built-in program does not go on unsealed, as if it had been.
	for _, args := range [][]string{{"@spin", "--seal", "--count", "1000"}, {"@jitter", "--passes", "1000"}, {"@cyclic", "--passes", "10"}} {
		if r := b.cloister(append([]string{"run", "--quiet", "--require", "D", "--place", "another=1"}, args...)...); r.status != workload.Refused {
			t.Errorf("%s: status %d, want %d: %s", args[0], r.status, workload.Refused, r.err)
		}
	}
}

// The cores that are isolated and judged are all that the run owns, whichever of the program's threads has them.
func TestIsolateForAnyThread(t *testing.T) {
	testenv.Need(t, testenv.KVM, testenv.Root, testenv.MultiCPU)
	prog := compile(t, "gcc", "placed", "placed.c", "-static", "-pthread")
	onStage(t, `cloister run --isolate --place 'rt*=1' --report /run/r.json `+prog+` >/run/out 2>/run/err || cat /run/out /run/err
same place
grep -q '"cpu": 1,' /run/r.json || echo 'no thread was on CPU 1'
grep -q 'drift' /run/err && cat /run/err
cloister run --require A --place 'rt*=1' `+prog+` >/run/out 2>&1
[ $? = 125 ] && grep -q 'CPU 1 is of grade D, not the A required' /run/out || { echo 'not judged:'; cat /run/out; }
cloister run --isolate --place 'rt*=1' `+prog+` >/run/out 2>&1 & e=$!
i=0; until [ "$(cat /proc/irq/36/smp_affinity_list)" = 0 ] || [ $i = 300 ]; do i=$((i + 1)); sleep 0.01; done
[ $i -lt 300 ] || echo 'IRQ 36 was not moved'
wait $e || cat /run/out
same again`)
}

// A plain Go program does with the packages what run --isolate does: by itself, stopped by Ctrl-C, killed, and disturbed.
func TestLibraryOnStage(t *testing.T) {
	testenv.Need(t, testenv.KVM, testenv.Root, testenv.MultiCPU)
	prog := program{Name: "quietloop", Tool: "go", Args: []string{"../../isolation/example/quietloop"}}.build(t)
	onStage(t, `loop() { `+prog+` -cpu 1 -leases /run "$@" >/run/out 2>&1; }
loop -for 1s || cat /run/out
grep -q '^CPU 1: grade D, and D with [1-9][0-9]* settings changed' /run/out && grep -q '^[1-9][0-9]* passes' /run/out && grep -q '^given back: [1-9]' /run/out || cat /run/out
same end
loop -for 60s & e=$!; applied
p=$(pgrep -P $e quietloop || echo $e)
[ "$(cat /proc/irq/36/smp_affinity_list)" = 0 ] || echo 'IRQ 36 was not moved'
cloister run --cpu 1 --for 1s @spin 2>&1 | grep -q 'in use' || echo 'the core was given away twice'
cloister host apply --cpu 1 >/dev/null 2>&1 && echo 'isolated twice'
kill -INT $p; wait $e || cat /run/out
same ctrl-c
loop -for 60s & e=$!; applied
p=$(pgrep -P $e quietloop || echo $e)
kill -9 $p; wait $e 2>/dev/null
cloister host status | grep -q 'quietloop (process .*it has ended' || echo 'no claim of the dead is shown'
cloister host restore >/run/out 2>&1 || cat /run/out
same killed
loop -for 4s & e=$!; applied
echo 7 >/proc/sys/vm/stat_interval
wait $e && echo 'the host is not as it was, and nobody says so'
grep -q 'drift: the statistics. interval: .* was 120, is 7' /run/out && grep -q 'quietloop: left alone: /proc/sys/vm/stat_interval' /run/out || cat /run/out
echo 1 >/proc/sys/vm/stat_interval
same disturbed
loop -dry-run || cat /run/out
same dry`)
}

// A core that host apply has made quiet is the one that --cpu auto takes, unless it is leased; --isolate, which makes one
// quiet itself, does not.
func TestCPUAutoTakesPreparedCore(t *testing.T) {
	onStage(t, `cloister host apply --cpu 1 >/run/out 2>&1 || cat /run/out
cloister run --cpu auto --for 4s --report /run/r.json @spin >/run/out 2>&1 & e=$!
sleep 2
cloister run --cpu auto --for 1s @spin 2>&1 | grep -q 'no CPU is free' || echo 'a leased core was taken'
wait $e || cat /run/out
grep -q 'auto: CPU 1: made quiet by cloister host apply' /run/out || { echo 'another was taken:'; cat /run/out; }
grep -q '"cpu": 1,' /run/r.json || echo 'it did not run there'
cloister host restore >/run/out 2>&1 || cat /run/out
cloister host apply --cpu 1 --hold >/run/held 2>&1 & h=$!
applied
cloister run --cpu auto --for 1s @spin 2>&1 | grep -q 'auto: CPU 1: made quiet by cloister host apply' || echo 'one that is held is not taken'
kill -INT $h; wait $h || cat /run/held
cloister host apply --cpu 1 >/run/out 2>&1 || cat /run/out
cloister run --cpu auto --isolate --for 1s @spin >/run/out 2>&1
[ $? = 125 ] || { echo '--isolate took it:'; cat /run/out; }
cloister host restore >/run/out 2>&1 || cat /run/out
cloister run --cpu auto --for 1s @spin 2>&1 | grep -q 'auto: CPU 1: a whole core' || echo 'not without, either'
same prepared`)
}
