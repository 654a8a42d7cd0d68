package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
	"golang.org/x/sys/unix"
)

// observed is the command under test, with a run directory of its own.
type observed struct {
	t   *testing.T
	bin string
	dir string
}

func newObserved(t *testing.T) *observed {
	t.Helper()
	testenv.Need(t, testenv.KVM, testenv.ParallelCPUs) // where CPUs take turns, an answer that comes in time elsewhere comes too late
	return &observed{t, commandUnderTest(t), t.TempDir()}
}

func (o *observed) command(args ...string) *exec.Cmd {
	c := exec.Command(o.bin, args...)
	c.Env = append(os.Environ(), "CLOISTER_RUN_DIR="+o.dir)
	return c
}

// do runs a command that ends by itself.
func (o *observed) do(args ...string) (status int, stdout, stderr string) {
	o.t.Helper()
	c := o.command(args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		o.t.Fatal(err)
	}
	dog := time.AfterFunc(time.Minute, func() { o.kill(c.Process.Pid) })
	defer dog.Stop()
	status = waited(o.t, c)
	return status, out.String(), errs.String()
}

func (o *observed) kill(pid int) {
	o.t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		o.t.Error(err)
	}
}

func waited(t *testing.T, c *exec.Cmd) int {
	t.Helper()
	var exit *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode()
}

// observedVM is a run in the background.
type observedVM struct {
	*observed
	name string
	cmd  *exec.Cmd
	err  *printed
	done chan int
}

// printed collects what a run prints.
type printed struct {
	mu sync.Mutex
	b  bytes.Buffer // not embedded: its ReadFrom would go past the lock
}

func (l *printed) Write(b []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(b) }
func (l *printed) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func (o *observed) run(name string, args ...string) *observedVM {
	o.t.Helper()
	v := &observedVM{observed: o, name: name, err: &printed{}, done: make(chan int, 1)}
	v.cmd = o.command(append([]string{"run", "--name", name, "--for", "50s"}, args...)...)
	v.cmd.Stderr = v.err
	v.cmd.WaitDelay = 5 * time.Second // the monitor holds the pipe; a killed engine must not hang the test
	if err := v.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	go func() {
		_ = v.cmd.Wait() // the status is what counts, and it is asserted
		v.done <- v.cmd.ProcessState.ExitCode()
	}()
	o.t.Cleanup(func() {
		o.kill(v.cmd.Process.Pid)
		if o.t.Failed() {
			o.t.Logf("run printed:\n%s", v.err)
		}
	})
	o.until("the VM runs", func() bool {
		s, ok := o.ps()[name]
		// Its monitor may come a little later than the VM (docs/decisions/0002-engine-and-monitor.md).
		return ok && s.Monitor != nil && (s.State == observe.Open || s.State == observe.Sealed)
	})
	return v
}

func (v *observedVM) ended() int {
	v.t.Helper()
	select {
	case status := <-v.done:
		return status
	case <-time.After(20 * time.Second):
		v.t.Fatalf("VM %s does not end", v.name)
	}
	return -1
}

func (o *observed) until(what string, done func() bool) {
	o.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("never: %s", what)
		}
	}
}

func (o *observed) ps() map[string]*observe.Status {
	o.t.Helper()
	status, out, errs := o.do("ps", "--json")
	var list []*observe.Status
	if err := json.Unmarshal([]byte(out), &list); err != nil || status != 0 || errs != "" {
		o.t.Fatalf("ps --json: %d, %v, %s", status, err, errs)
	}
	m := map[string]*observe.Status{}
	for _, s := range list {
		m[s.Name] = s
	}
	return m
}

// left lists what lies in the run directory but leases of cores, which are files that stay.
func (o *observed) left() (names []string) {
	o.t.Helper()
	list, err := os.ReadDir(filepath.Join(o.dir, "vm"))
	if err != nil {
		o.t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

var (
	metricsLine = regexp.MustCompile(`metrics at (http://127\.0\.0\.1:[0-9]+/metrics)\n`)
	breaksLine  = regexp.MustCompile(`(?m)^cloister_breaks_total\{cause="([^"]+)",sealed="(true|false)",vcpu="0",vm="seen"\} (\S+)$`)
)

func fetch(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("%s: %d, %v", url, r.StatusCode, err)
	}
	return string(b)
}

// countsOf are the breaks of a scrape by "CAUSE sealed".
func countsOf(t *testing.T, text string) map[string]uint64 {
	t.Helper()
	m := map[string]uint64{}
	for _, l := range breaksLine.FindAllStringSubmatch(text, -1) {
		f, err := strconv.ParseFloat(l[3], 64)
		if err != nil {
			t.Fatal(err)
		}
		m[l[1]+" "+l[2]] = uint64(f)
	}
	return m
}

// A run is scraped, listed, looked at and stopped, and what was seen agrees with its report.
func TestSeenWhileRunning(t *testing.T) {
	o := newObserved(t)
	testenv.Need(t, testenv.MultiCPU)
	report := filepath.Join(o.dir, "report.json")
	cpu := runtime.NumCPU() - 1
	v := o.run("seen", "--cpu", strconv.Itoa(cpu), "--metrics", "0", "--report", report, "--budget", "syscall=0", "@jitter")
	o.until("it is sealed", func() bool { return o.ps()["seen"].State == observe.Sealed })
	m := metricsLine.FindStringSubmatch(v.err.String())
	if m == nil {
		t.Fatal("no line says where the metrics are")
	}
	before := countsOf(t, fetch(t, m[1]))
	if len(before) < 60 {
		t.Fatalf("only %d series of breaks", len(before))
	}
	text := fetch(t, m[1])
	last := countsOf(t, text)
	for name, n := range before {
		if last[name] < n {
			t.Errorf("%s fell from %d to %d", name, n, last[name])
		}
	}
	for _, line := range []string{`cloister_sealed{vcpu="0",vm="seen"} 1`, `cloister_snapshot_failures_total{vm="seen"} 0`,
		fmt.Sprintf(`cloister_vcpu_info{cpu="%d",vcpu="0",vm="seen"} 1`, cpu),
		`cloister_budget_left_breaks{per="run",subject="syscall",vcpu="0",vm="seen"} 0`, `cloister_process_resident_bytes{kind="private",process="engine",vm="seen"} `} {
		if !strings.Contains(text, line) {
			t.Errorf("the scrape lacks %s", line)
		}
	}

	s := o.ps()["seen"]
	if s.Engine != v.cmd.Process.Pid || s.Monitor == nil || *s.VCPUs[0].CPU != uint32(cpu) || s.Program != "@jitter" || s.WallNS == 0 || *s.Memory.Guest == 0 {
		t.Errorf("ps: %+v", s)
	}
	if status, out, errs := o.do("ps"); status != 0 || errs != "" || !regexp.MustCompile(fmt.Sprintf(`(?m)^seen +%d +%d +sealed +`, v.cmd.Process.Pid, cpu)).MatchString(out) {
		t.Errorf("ps: %d %s\n%s", status, errs, out)
	}
	if status, out, errs := o.do("stats", "seen", "--interval", "200ms"); status != 0 || errs != "" || !regexp.MustCompile(`(?m)^  syscall +0 +0 +[1-9][0-9]* +0 +`).MatchString(out) {
		t.Errorf("stats: %d %s\n%s", status, errs, out)
	}
	if status, out, errs := o.do("stats", "sean"); status != session.StatusCloister || out != "" || errs != "cloister: no VM \"sean\": running: seen\n" {
		t.Errorf("stats of another: %d %q %q", status, out, errs)
	}
	if status, out, errs := o.do("stop", "seen"); status != 0 || out+errs != "" {
		t.Errorf("stop: %d %q %q", status, out, errs)
	}
	if status := v.ended(); status != 128+int(unix.SIGTERM) {
		t.Errorf("the run ended with %d", status)
	}
	if left := o.left(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}

	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var r breaks.Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if r.Exit.Reason != "stopped: cloister stop" {
		t.Errorf("the report says %q", r.Exit.Reason)
	}
	total := func(name string) uint64 {
		c := r.VCPUs[0].Breaks
		if n, ok := c.ByCause[name]; ok {
			return n.Count
		}
		return c.Planned[name].Count
	}
	for c := range breaks.NCause {
		seen, final := last[c.String()+" true"]+last[c.String()+" false"], total(c.String())
		// The interrupt that stopped the guest is its end, and may have been seen as an interrupt.
		if seen > final && (!c.FromKernel() || seen > final+1) {
			t.Errorf("%s: %d in the scrape, %d in the report", c, seen, final)
		}
		if (c == breaks.Syscall || c == breaks.Seal) && seen != final {
			t.Errorf("%s: %d in the scrape, %d in the report; none came after it", c, seen, final)
		}
	}
}

// The monitor is no part of the guest's life: killed, it takes nothing with it.
func TestMonitorKilled(t *testing.T) {
	o := newObserved(t)
	v := o.run("alone", "--metrics", "127.0.0.1:0", "@jitter")
	m := metricsLine.FindStringSubmatch(v.err.String())
	if m == nil {
		t.Fatal("no line says where the metrics are")
	}
	o.until("it is sealed", func() bool { return o.ps()["alone"].State == observe.Sealed })
	o.kill(*o.ps()["alone"].Monitor)
	var s *observe.Status
	o.until("ps sees that the monitor is gone", func() bool { s = o.ps()["alone"]; return s != nil && s.Monitor == nil })
	if len(s.VCPUs) != 1 || s.VCPUs[0].Seals != 1 || *s.VCPUs[0].Open.ByCause["syscall"].Count == 0 || s.VCPUs[0].Open.NotKnown == "" || s.Program != "@jitter" {
		t.Errorf("what is known of it: %+v", s)
	}
	wall := s.WallNS
	o.until("its clock goes on", func() bool { return o.ps()["alone"].WallNS > wall+5e8 })
	if _, out, _ := o.do("ps"); !strings.Contains(out, "sealed (no monitor)") {
		t.Error(out)
	}
	if status, out, errs := o.do("stats", "--interval", "100ms"); status != 0 || errs != "" || !strings.Contains(out, "monitor none") {
		t.Errorf("stats: %d %s\n%s", status, errs, out)
	}
	if r, err := http.Get(m[1]); err == nil {
		r.Body.Close()
		t.Errorf("somebody still answers at %s: %s", m[1], r.Status)
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a scrape is left waiting: %v", err)
	}
	if status, out, errs := o.do("stop", "alone"); status != 0 || out+errs != "" {
		t.Errorf("stop: %d %q %q", status, out, errs)
	}
	if status := v.ended(); status != 128+int(unix.SIGTERM) {
		t.Errorf("the run ended with %d", status)
	}
	if left := o.left(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestEngineKilled(t *testing.T) {
	o := newObserved(t)
	v := o.run("killed", "@spin")
	other := o.run("other", "@spin")
	monitor := *o.ps()["killed"].Monitor
	o.kill(v.cmd.Process.Pid)
	if status := v.ended(); status != -1 {
		t.Errorf("the run ended with %d", status)
	}
	o.until("the monitor has ended and cleaned up", func() bool {
		return errors.Is(unix.Kill(monitor, 0), unix.ESRCH) && slices.Equal(o.left(), []string{"other"})
	})
	if list := o.ps(); len(list) != 1 || list["other"] == nil {
		t.Errorf("%+v", list)
	}
	if status, _, errs := o.do("stop", "killed"); status != session.StatusCloister || errs != "cloister: no VM \"killed\": running: other\n" {
		t.Errorf("stop: %d %q", status, errs)
	}

	// Both at once: what they leave is not taken for a VM, and not in the way of the next.
	monitor = *o.ps()["other"].Monitor
	o.kill(monitor)
	o.kill(other.cmd.Process.Pid)
	other.ended()
	if list := o.ps(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	next := o.run("other", "@spin")
	if status, _, errs := o.do("stop", "other"); status != 0 {
		t.Errorf("stop: %d %q", status, errs)
	}
	next.ended()
	if left := o.left(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestMetricsPortInUse(t *testing.T) {
	o := newObserved(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, x := range []struct{ addr, want string }{
		{l.Addr().String(), "address already in use"}, {"203.0.113.1:9100", "cannot assign requested address"}, {"no.such.host.invalid:1", "no.such.host.invalid"},
	} {
		status, out, errs := o.do("run", "--metrics", x.addr, "@spin")
		if status != session.StatusCloister || out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "cloister: --metrics "+x.addr+": ") ||
			!strings.Contains(errs, x.want) || !strings.Contains(errs, "choose another address or port") {
			t.Errorf("%s: %d %q", x.addr, status, errs)
		}
	}
	if _, err := os.Stat(filepath.Join(o.dir, "vm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was made before the port was bound: %v", err)
	}
}

// Many looks at once from `ps` never keep a VM from starting, nor show one that is half made.
func TestStartWhileListed(t *testing.T) {
	o := newObserved(t)
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				o.ps()
			}
		})
	}
	for range 20 {
		if status, _, errs := o.do("run", "--quiet", "--name", "x", "--for", "1ms", "@spin"); status != 0 {
			t.Errorf("%d %s", status, errs)
		}
	}
	close(stop)
	all.Wait()
}

func TestBadInputOfLooks(t *testing.T) {
	b := newBareBox(t)
	for _, x := range []struct {
		args string
		want string
	}{
		{"stats nope", `no VM "nope": none is running`}, {"stop nope", `no VM "nope": none is running`}, {"stats", "which VM? none is running"},
		{"stop", "stop takes the name of one VM"}, {"stop a b", "stop takes the name of one VM"}, {"stats a b", "one VM at a time"},
		{"ps x", "ps takes no arguments"}, {"ps --nope", "`cloister ps -h` lists"}, {"stats --interval 1ms", "choose 100ms to 1h0m0s"},
		{"stats --watch --json", "exclude each other"}, {"stop x --timeout -1s", "not negative"}, {"ring", "takes the name"}, {"ring nope x", `no VM "nope"`}, {"stats ../x", `no VM "../x"`},
	} {
		r := b.cloister(strings.Fields(x.args)...)
		if r.status != session.StatusCloister || r.out != "" || !strings.Contains(r.err, x.want) || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%s: %d %q %q", x.args, r.status, r.out, r.err)
		}
	}
	for _, name := range []string{"ps", "stats", "stop", "ring"} {
		if r := b.cloister(name, "-h"); r.status != 0 || r.err != "" || !strings.HasPrefix(r.out, "cloister "+name) {
			t.Errorf("%s -h: %d %q %q", name, r.status, r.out, r.err)
		}
	}
}

// A scrape touches nothing in the engine: none of its threads but the vCPU's, which is at work, wakes up
// for it, and the process takes no page fault.
func TestScrapeLeavesTheEngineAlone(t *testing.T) {
	o := newObserved(t)
	v := o.run("still", "--quiet", "--seal", "start", "--metrics", "0", "@spin")
	url := "http://" + o.ps()["still"].Metrics + "/metrics"
	fetch(t, url)
	tasks := fmt.Sprintf("/proc/%d/task", v.cmd.Process.Pid)
	look := func() (switches map[string]uint64, vcpu string, faults uint64) {
		switches = map[string]uint64{}
		list, err := os.ReadDir(tasks)
		if err != nil {
			t.Fatal(err)
		}
		var most uint64
		for _, e := range list {
			status, stat := session.Fact(filepath.Join(tasks, e.Name(), "status")), strings.Fields(session.Fact(filepath.Join(tasks, e.Name(), "stat")))
			for line := range strings.Lines(status) {
				if k, n, _ := strings.Cut(line, ":"); strings.HasSuffix(k, "ctxt_switches") {
					switches[e.Name()] += number(t, strings.TrimSpace(n))
				}
			}
			// proc_pid_stat(5): 10 is minflt, 14 utime.
			faults += number(t, stat[9])
			if u := number(t, stat[13]); u >= most {
				most, vcpu = u, e.Name()
			}
		}
		return switches, vcpu, faults
	}
	before, _, faultsBefore := look()
	const scrapes = 50
	for range scrapes {
		fetch(t, url)
	}
	after, vcpu, faultsAfter := look()
	var n uint64
	for tid, k := range after {
		if tid != vcpu {
			n += k - before[tid]
		}
	}
	if n >= scrapes/10 || faultsAfter-faultsBefore >= scrapes/10 {
		t.Errorf("%d scrapes: %d context switches and %d page faults in the engine", scrapes, n, faultsAfter-faultsBefore)
	}
	if status, _, errs := o.do("stop", "still"); status != 0 {
		t.Errorf("stop: %s", errs)
	}
	v.ended()
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
