package observe

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/prometheus/client_golang/prometheus"
)

// metric is one row of the table of metrics, and of the one in docs/metrics.md.
type metric struct {
	name   string
	kind   prometheus.ValueType // histograms are Untyped here
	labels []string
	help   string
}

// Indices into metrics.
const (
	mBreaks = iota
	mLost
	mLength
	mGuest
	mWall
	mIdle
	mSealedTime
	mSealed
	mSeals
	mKicks
	mState
	mInfo
	mThread
	mKVM
	mClosed
	mLeftBreaks
	mLeftSeconds
	mClause
	mMemory
	mGuestMemory
	mRecordsLost
	mStrays
	mPatches
	mPatchNumber
	mPatchPause
	mFailures
	mBuild
	nMetric
)

var perBook = []string{"vm", "vcpu", "sealed"}
var perCause = []string{"vm", "vcpu", "cause", "sealed"}
var perClause = []string{"vm", "vcpu", "subject", "per"}

var metrics = [nMetric]metric{
	mBreaks:      {"cloister_breaks_total", prometheus.CounterValue, perCause, "Isolation breaks."},
	mLost:        {"cloister_lost_seconds_total", prometheus.CounterValue, perCause, "Time outside the guest, of breaks that returned to the engine."},
	mLength:      {"cloister_break_length_seconds", prometheus.UntypedValue, perCause, "Length of breaks that returned to the engine."},
	mGuest:       {"cloister_guest_seconds_total", prometheus.CounterValue, perBook, "Time inside KVM_RUN."},
	mWall:        {"cloister_wall_seconds_total", prometheus.CounterValue, []string{"vm", "vcpu"}, "Time since the first instruction, idle time left out."},
	mIdle:        {"cloister_idle_seconds_total", prometheus.CounterValue, []string{"vm", "vcpu"}, "Time in which the vCPU had no thread of the program to run."},
	mSealedTime:  {"cloister_sealed_seconds_total", prometheus.CounterValue, []string{"vm", "vcpu"}, "Time under isolation."},
	mSealed:      {"cloister_sealed", prometheus.GaugeValue, []string{"vm", "vcpu"}, "1 while the program is isolated."},
	mSeals:       {"cloister_seals_total", prometheus.CounterValue, []string{"vm", "vcpu"}, "How often the program asked for isolation."},
	mKicks:       {"cloister_kicks_total", prometheus.CounterValue, []string{"vm", "vcpu"}, "Stop requests that the vCPU acknowledged."},
	mState:       {"cloister_vcpu_state", prometheus.GaugeValue, []string{"vm", "vcpu", "state"}, "1 for the state that the vCPU is in, 0 for the others."},
	mInfo:        {"cloister_vcpu_info", prometheus.GaugeValue, []string{"vm", "vcpu", "cpu"}, "Always 1; the host CPU that the vCPU owns, or none."},
	mThread:      {"cloister_vcpu_thread_info", prometheus.GaugeValue, []string{"vm", "vcpu", "thread"}, "Always 1; the name of the program's thread that the vCPU has, or had last."},
	mKVM:         {"cloister_kvm_statistic_total", prometheus.CounterValue, []string{"vm", "vcpu", "statistic", "sealed"}, "KVM's own statistics of the vCPU."},
	mClosed:      {"cloister_books_closed", prometheus.GaugeValue, perBook, "1 while KVM's statistics and the returns of KVM_RUN add up."},
	mLeftBreaks:  {"cloister_budget_left_breaks", prometheus.GaugeValue, perClause, "What a clause of the budget still allows; negative when it is broken."},
	mLeftSeconds: {"cloister_budget_left_seconds", prometheus.GaugeValue, perClause, "What a clause of the budget still allows; negative when it is broken."},
	mClause:      {"cloister_budget_state", prometheus.GaugeValue, append(slices.Clone(perClause), "state"), "1 for the state that the clause is in, 0 for the others."},
	mMemory:      {"cloister_process_resident_bytes", prometheus.GaugeValue, []string{"vm", "process", "kind"}, "Resident memory of Cloister's two processes."},
	mGuestMemory: {"cloister_guest_memory_bytes", prometheus.GaugeValue, []string{"vm"}, "Host memory behind the guest's addresses."},
	mRecordsLost: {"cloister_records_lost_total", prometheus.CounterValue, []string{"vm", "vcpu", "record"}, "Records for which a table of the ledger had no room."},
	mStrays:      {"cloister_stray_threads_total", prometheus.CounterValue, []string{"vm"}, "Threads of Cloister's own that were found on a dedicated core, and moved."},
	mPatches:     {"cloister_patches_total", prometheus.CounterValue, []string{"vm", "outcome"}, "Patches that were asked for, by what became of them."},
	mPatchNumber: {"cloister_patch_number", prometheus.GaugeValue, []string{"vm"}, "Number of the latest patch, committed or not."},
	mPatchPause:  {"cloister_patch_pause_seconds", prometheus.UntypedValue, []string{"vm", "vcpu"}, "How long a patch held the vCPU, from its acknowledgement of the stop to its release."},
	mFailures:    {"cloister_snapshot_failures_total", prometheus.CounterValue, []string{"vm"}, "Scrapes that could not get a consistent snapshot."},
	mBuild:       {"cloister_build_info", prometheus.GaugeValue, []string{"version", "goversion"}, "Always 1; the version of Cloister and of the Go that built it."},
}

// The bounds of the length histogram are buckets histFirst to histLast of the ledger, in steps of one:
// at 2.5 GHz from 0.4 us to 3.4 s, each twice the one before. A shorter break does not exist (KVM's own
// round trip is longer), a longer one is in +Inf.
const histFirst, histLast = 10, 33

// snapshotTime is how long a scrape waits for its snapshot.
const snapshotTime = 5 * time.Second

// Collector is a prometheus.Collector over snapshots of one VM.
type Collector struct {
	vm     VM
	source Source
	descs  [nMetric]*prometheus.Desc

	mu       sync.Mutex
	names    map[uint32]map[string]bool // of threads, that each vCPU has shown: invariant 3
	failures uint64
	highest  map[string]float64 // of every counter: invariant 2
}

// NewCollector makes the collector of a VM.
func NewCollector(vm VM, source Source) *Collector {
	c := &Collector{vm: vm, source: source, highest: map[string]float64{}, names: map[uint32]map[string]bool{}}
	for i, m := range metrics {
		c.descs[i] = prometheus.NewDesc(m.name, m.help, m.labels, nil)
	}
	return c
}

func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

func (c *Collector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	s, err := c.source(ctx)
	g := &gathering{c: c, out: out}
	if err != nil {
		c.failures++
	} else {
		g.snapshot(s)
	}
	g.put(mFailures, float64(c.failures), c.vm.Name)
	g.put(mBuild, 1, c.vm.Version, c.vm.Go)
}

// gathering is one scrape.
type gathering struct {
	c   *Collector
	out chan<- prometheus.Metric
}

func (g *gathering) put(i int, v float64, labels ...string) {
	if metrics[i].kind == prometheus.CounterValue {
		key := strconv.Itoa(i) + "\x00" + strings.Join(labels, "\x00")
		v = max(v, g.c.highest[key])
		g.c.highest[key] = v
	}
	// The label counts are those of the table, which the golden test goes through whole.
	g.out <- prometheus.MustNewConstMetric(g.c.descs[i], metrics[i].kind, v, clean(labels)...)
}

// clean makes label values valid UTF-8, as the format wants: a VM's name may be any bytes.
func clean(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	return labels
}

func (g *gathering) snapshot(s *Snapshot) {
	vm := g.c.vm.Name
	for i := range s.VCPUs {
		g.vcpu(s, &s.VCPUs[i])
	}
	for _, p := range []struct {
		process string
		r       *Resident
	}{{"engine", s.Memory.Engine}, {"monitor", s.Memory.Monitor}} {
		if p.r != nil {
			g.put(mMemory, float64(p.r.Private), vm, p.process, "private")
			g.put(mMemory, float64(p.r.Shared), vm, p.process, "shared")
		}
	}
	if s.Memory.Guest != nil {
		g.put(mGuestMemory, float64(*s.Memory.Guest), vm)
	}
	g.put(mStrays, float64(s.Strays), vm)
	if s.Patches != nil {
		g.patches(s.Patches)
	}
}

// maxNames is how many names of threads one vCPU may show in its life. The program chooses them, and each
// makes a series that a Prometheus keeps.
const maxNames = 8

// otherThread is shown in place of names that came later. No thread is called so: it is longer than a name.
const otherThread = "(a later thread)"

// thread is the label for a thread's name.
func (c *Collector) thread(vcpu uint32, name string) string {
	name = breaks.ThreadName(name)
	known := c.names[vcpu]
	switch {
	case known == nil:
		known = map[string]bool{}
		c.names[vcpu] = known
	case !known[name] && len(known) == maxNames:
		return otherThread
	}
	known[name] = true
	return name
}

func (g *gathering) vcpu(s *Snapshot, l *Ledger) {
	c := &l.Counts
	vm, id := g.c.vm.Name, strconv.FormatUint(uint64(c.ID), 10)
	hz := float64(c.TSCHz)
	timed := c.TSCHz != 0
	if timed {
		g.put(mWall, float64(c.Wall(s.Now))/hz, vm, id)
		g.put(mIdle, float64(c.IdleFor(s.Now))/hz, vm, id)
		g.put(mSealedTime, float64(c.SealedFor(s.Now))/hz, vm, id)
	}
	g.put(mSealed, bit(c.Sealed != 0), vm, id)
	g.put(mSeals, float64(c.Seals), vm, id)
	g.put(mKicks, float64(c.Kicks), vm, id)
	for i, name := range states {
		g.put(mState, bit(int(c.State) == i), vm, id, name)
	}
	cpu := "none"
	if c.CPU != breaks.NoCPU {
		cpu = strconv.FormatUint(uint64(c.CPU), 10)
	}
	g.put(mInfo, 1, vm, id, cpu)
	if l.Thread != "" {
		g.put(mThread, 1, vm, id, g.c.thread(c.ID, l.Thread))
	}
	g.put(mRecordsLost, float64(c.SiteLost), vm, id, "site")
	g.put(mRecordsLost, float64(c.StackLost), vm, id, "stack")
	if l.EventsLost != nil {
		g.put(mRecordsLost, float64(*l.EventsLost), vm, id, "event")
	}
	for half := range c.Book {
		g.book(s, l, half, vm, id, strconv.FormatBool(half == breaks.Sealed))
	}
	if b := g.c.vm.Budget; b != nil {
		g.budget(*b, l, s, vm, id)
	}
}

func (g *gathering) book(s *Snapshot, l *Ledger, half int, vm, id, sealed string) {
	c := &l.Counts
	b, hz := &c.Book[half], float64(c.TSCHz)
	kernel, known, closed, _ := kernelHalf(c, half, g.c.vm.backend(l))
	for k := range breaks.NCause {
		count := &b.Cause[k]
		if k.FromKernel() {
			if known(k) {
				g.put(mBreaks, float64(kernel[k]), vm, id, k.String(), sealed)
			}
			continue
		}
		if uncounted(c, k, g.c.vm.backend(l)) {
			continue
		}
		g.put(mBreaks, float64(count.Count), vm, id, k.String(), sealed)
		if hz == 0 {
			continue
		}
		g.put(mLost, float64(count.Lost)/hz, vm, id, k.String(), sealed)
		if count.Count != 0 {
			n, buckets := lengths(&count.Hist, hz)
			g.out <- prometheus.MustNewConstHistogram(g.c.descs[mLength], n, float64(count.Lost)/hz, buckets, clean([]string{vm, id, k.String(), sealed})...)
		}
	}
	if hz != 0 {
		g.put(mGuest, float64(inGuest(c, half, s.Now))/hz, vm, id, sealed)
	}
	if g.c.vm.backend(l) == "" {
		return
	}
	g.put(mClosed, bit(closed), vm, id, sealed)
	if g.c.vm.Backend == breaks.BackendBare {
		return
	}
	for i, name := range breaks.KernelNames {
		g.put(mKVM, float64(b.Kernel[i]), vm, id, name, sealed)
	}
}

// lengths turns the ledger's histogram into cumulative buckets; the bounds are the largest length in
// cycles that a bucket holds, in seconds.
func lengths(hist *[breaks.NHist]uint64, hz float64) (n uint64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, histLast-histFirst+1)
	for i, k := range hist {
		n += k
		if i >= histFirst && i <= histLast {
			buckets[float64(breaks.BucketBound(i))/hz] = n
		}
	}
	return n, buckets
}

func (g *gathering) budget(b breaks.Budget, l *Ledger, s *Snapshot, vm, id string) {
	b.Backend = g.c.vm.backend(l)
	for i, v := range b.Check(&l.Counts, s.Now).Clauses {
		per := "run"
		if b.Clauses[i].PerSecond {
			per = "second"
		}
		subject := b.Clauses[i].Subject
		switch {
		case v.State == breaks.Untested || v.State == breaks.Unjudged: // what is left is not known
		case v.Unit == "ns":
			g.put(mLeftSeconds, float64(v.Left)/1e9, vm, id, subject, per)
		default:
			g.put(mLeftBreaks, float64(v.Left), vm, id, subject, per)
		}
		for _, state := range []breaks.State{breaks.Kept, breaks.Untested, breaks.Unjudged, breaks.Broken} {
			g.put(mClause, bit(v.State == state), vm, id, subject, per, string(state))
		}
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
