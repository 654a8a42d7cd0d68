package vdso

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

func hostTime(t testing.TB, id int) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(id), &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}

// put publishes one slot by hand.
func (n *native) put(t testing.TB, gen uint64, sl *slot) *dataPage {
	p, err := asPage(n.page)
	if err != nil {
		t.Fatal(err)
	}
	p.fill(gen, sl)
	p[wordGen].Store(gen) // ORDER(none): as Clock.publish, which says why
	return p
}

// TestCodeMatchesModel compares the machine code with line.ns on slots of every kind: the TSC that the code
// reads lies between two that the test reads, and so must the time.
func TestCodeMatchesModel(t *testing.T) {
	n := mapNative(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		now := tsc()
		s := now + rng.Uint64N(1<<34) - 1<<33
		sl := &slot{served: 0xfff}
		for k := range sl.offset {
			sl.offset[k] = rng.Int64N(1 << 60)
		}
		mk := func() line {
			ns := rng.Uint64N(1<<59) + 1<<40
			return line{s: s, old: one/8 + rng.Uint64N(2*one), new: one/8 + rng.Uint64N(2*one),
				hi: ns >> (64 - Fraction), lo: ns<<Fraction | rng.Uint64N(one)}
		}
		sl.mono, sl.raw = mk(), mk()
		n.put(t, uint64(i+1), sl)
		id := rng.IntN(clocks)
		l := sl.mono
		if id == clockRaw {
			l = sl.raw
		}
		a := tsc()
		got := n.gettime(t, id)
		b := tsc()
		if lo, hi := l.ns(a)+sl.offset[id], l.ns(b)+sl.offset[id]; got < lo || got > hi {
			t.Fatalf("slot %d, clock %d: %d is not within [%d, %d]: %+v", i, id, got, lo, hi, l)
		}
	}
}

// TestBoundaries runs the code where seconds and microseconds turn over: the slope is so low that the
// offset alone decides.
func TestBoundaries(t *testing.T) {
	n := mapNative(t)
	sl := &slot{served: 0xfff}
	sl.mono = line{s: tsc(), old: 1, new: 1}
	gen := uint64(0)
	for _, base := range []int64{0, 1e9, 1 << 30 * 1e9, 9e18} {
		for _, d := range []int64{0, 1, 511, 512, 999, 1000, 999_999_999, 999_999_488} {
			for _, less := range []int64{0, 1} {
				want := max(base+d-less, 0)
				sl.offset[clockRealtime] = want
				gen++
				n.put(t, gen, sl)
				if got := n.gettime(t, clockRealtime); got != want {
					t.Errorf("clock_gettime: %d, want %d", got, want)
				}
				var tv [2]int64
				if r := n.call2("__vdso_gettimeofday", &tv, nil); r != 0 || tv != [2]int64{want / 1e9, want % 1e9 / 1000} {
					t.Errorf("gettimeofday: %d, %v, want %d", r, tv, want)
				}
				var s [2]int64
				if r := n.call2("__vdso_time", &s, nil); r != want/1e9 || s[0] != r || s[1] != 0 {
					t.Errorf("time: %d, %v, want %d", r, s, want/1e9)
				}
				if r := n.call2("__vdso_time", nil, nil); r != want/1e9 {
					t.Errorf("time(NULL): %d, want %d", r, want/1e9)
				}
			}
		}
	}
	if r := n.call2("__vdso_gettimeofday", nil, nil); r != 0 {
		t.Errorf("gettimeofday(NULL, NULL): %d", r)
	}
}

// TestFallback covers what the page does not serve: the answer is the kernel's.
func TestFallback(t *testing.T) {
	n := mapNative(t)
	check := func(id int) {
		t.Helper()
		a := hostTime(t, id)
		got := n.gettime(t, id)
		if b := hostTime(t, id); got < a || got > b {
			t.Errorf("clock %d: %d is not within [%d, %d]", id, got, a, b)
		}
	}
	for _, id := range []int{0, 1, 2, 3, 4, 7, 11} { // no slot at all yet
		check(id)
	}
	var tv, tz [2]int64
	if r := n.call2("__vdso_gettimeofday", &tv, nil); r != 0 || tv[0] < 1e9 {
		t.Errorf("gettimeofday without a slot: %d, %v", r, tv)
	}
	if r := n.call2("__vdso_time", nil, nil); r < 1e9 {
		t.Errorf("time without a slot: %d", r)
	}
	p := n.put(t, 1, &slot{served: 1 << clockMonotonic, mono: line{new: 1, old: 1}})
	check(2)
	check(3)
	check(0)
	tz = [2]int64{-1, -1}
	if r := n.call2("__vdso_gettimeofday", &tv, &tz); r != 0 || tz[0] == -1 || tv[0] < 1e9 {
		t.Errorf("gettimeofday with a time zone: %d, %v %v", r, tv, tz)
	}
	var ts [2]int64
	for _, id := range []uintptr{12, 99, 1 << 31, ^uintptr(0)} {
		got, want := n.call("__vdso_clock_gettime", id, &ts), unix.ClockGettime(int32(id), &unix.Timespec{})
		if want == nil && got != 0 || want != nil && unix.Errno(-got) != want {
			t.Errorf("clock_gettime(%d): %d, the kernel says %v", int32(id), got, want)
		}
	}
	p[wordRes].Store(7) // ORDER(none): one thread
	for id, want := range map[uintptr]int64{0: 7, 1: 7, 4: 7, 7: 7, 11: 7, 2: 1} {
		if r := n.call("__vdso_clock_getres", id, &ts); r != 0 || ts != [2]int64{0, want} {
			t.Errorf("clock_getres(%d): %d, %v, want %d", id, r, ts, want)
		}
	}
	if r := n.call("__vdso_clock_getres", 1, nil); r != 0 {
		t.Errorf("clock_getres(1, NULL): %d", r)
	}
	// Natively entry 15 holds the CPU's number: each stands for a vCPU.
	cpus, err := CPUsOf(n.page)
	if err != nil {
		t.Fatal(err)
	}
	for _, add := range []int{-1, 100} { // not set, then another number
		for i := range MaxVCPUs {
			if add >= 0 {
				cpus.Set(i, i+add)
			}
		}
		var cpu, node [2]int64
		if r := n.call2("__vdso_getcpu", &cpu, &node); r != 0 || add > 0 && cpu[0] < MaxVCPUs || cpu[0] < 0 || cpu[0] > 4095 {
			t.Errorf("getcpu: %d, %v %v", r, cpu, node)
		}
		if r := n.call2("__vdso_getcpu", nil, nil); r != 0 {
			t.Errorf("getcpu(NULL, NULL): %d", r)
		}
	}
}

// TestRedirect: the host's vDSO with a getcpu that leads to code behind it is the same but for five bytes, which jump there; what
// is no vDSO is refused.
func TestRedirect(t *testing.T) {
	img, err := Image()
	if err != nil {
		t.Fatal(err)
	}
	old := append([]byte(nil), img...)
	if ok, err := Redirect(img, 0x2000); !ok || err != nil {
		t.Fatal(ok, err)
	}
	first, changed := -1, 0
	for i := range img {
		if img[i] != old[i] {
			if first < 0 {
				first = i
			}
			changed++
		}
	}
	if changed == 0 || changed > 5 || img[first] != 0xe9 || first+5+int(int32(binary.LittleEndian.Uint32(img[first+1:]))) != 0x2000 {
		t.Errorf("%d bytes changed from %#x on: %x", changed, first, img[first:first+5])
	}
	for n := 0; n < 1000; n += 9 {
		if ok, err := Redirect(append([]byte(nil), old[:n]...), 0x2000); ok || err == nil {
			t.Errorf("%d bytes of it: %v, %v", n, ok, err)
		}
	}
	none := bytes.ReplaceAll(append([]byte(nil), old...), []byte("getcpu"), []byte("gotcpu"))
	if ok, err := Redirect(none, 0x2000); ok || err != nil {
		t.Errorf("without getcpu: %v, %v", ok, err)
	}
	code, err := GetCPU(0x10000, 0x12000)
	if err != nil {
		t.Fatal(err)
	}
	if at := bytes.Index(code, []byte{0x4c, 0x8d, 0x05}); at != 0 || 0x10000+7+int(int32(binary.LittleEndian.Uint32(code[3:]))) != 0x12000 {
		t.Errorf("getcpu begins with %x", code[:8])
	}
}

// TestTornSlot publishes without pause, much faster than Clock, slots whose line and offset change but cancel
// out: every consistent read gives the same time.
func TestTornSlot(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	const want = 1_700_000_000_123_456_789
	n := mapNative(t)
	publish := func(gen uint64) {
		k := int64(gen * 0x9e3779b97f4a7c15 >> 8)
		sl := &slot{served: 1, mono: line{s: 1, old: 1, new: 1, hi: uint64(k) >> (64 - Fraction), lo: uint64(k) << Fraction}}
		sl.offset[clockRealtime] = want - k
		n.put(t, gen, sl)
	}
	publish(1)
	var stop atomic.Bool // ORDER(none): only ends the loop
	var wg sync.WaitGroup
	wg.Go(func() {
		for gen := uint64(2); !stop.Load(); gen++ {
			publish(gen)
		}
	})
	p, err := asPage(n.page)
	if err != nil {
		t.Fatal(err)
	}
	// The slope of 2^-48 adds the TSC's age, below 2^20 ns on any machine that is up for less than years.
	const slack = 1 << 20
	retried := 0
	end := time.Now().Add(20 * time.Second)
	for i := 0; i < 1_000_000 || retried < 1000 && time.Now().Before(end); i++ {
		g := p[wordGen].Load() // ORDER(none): statistic
		if got := n.gettime(t, clockRealtime); got < want || got > want+slack {
			t.Errorf("torn: %d off", got-want)
			break
		}
		if p[wordGen].Load() != g { // ORDER(none): statistic
			retried++
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("the slot changed during %d reads", retried)
	if retried < 1000 {
		t.Errorf("the slot changed during only %d reads: nothing was tested", retried)
	}
}

// TestFollowsHost runs readers beside an updating Clock: no time runs backwards, on any thread or between
// threads, and the error against the host's clock stays small.
func TestFollowsHost(t *testing.T) {
	d := 2 * time.Second
	if !testing.Short() {
		d = 10 * time.Second
	}
	n := mapNative(t)
	c, err := NewClock(n.page, Kernel{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	var latest atomic.Int64        // ORDER(none): Go's atomics are sequentially consistent; hands times between readers
	var reads, across atomic.Int64 // ORDER(none): statistic
	for _, id := range []int{clockMonotonic, clockMonotonic, clockRaw} {
		wg.Go(func() {
			last := int64(0)
			for ctx.Err() == nil {
				for k := range 1000 {
					shared := id == clockMonotonic && k%4 == 0
					seen := int64(0)
					if shared {
						seen = latest.Load()
					}
					now := n.gettime(t, id)
					if now < last || now < seen {
						t.Errorf("clock %d ran backwards by %d (own) or %d (other thread)", id, last-now, seen-now)
						return
					}
					last = now
					if shared {
						latest.Store(now)
						across.Add(1)
					}
				}
				reads.Add(1000)
			}
		})
	}
	var st Stats
	if err := c.Run(ctx, func(s Stats) { st = s }); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	t.Logf("%d reads, %d across threads; %+v", reads.Load(), across.Load(), st)
	if st.Updates < uint64(d/Period)/4 {
		t.Errorf("%d updates in %v", st.Updates, d)
	}
	for _, id := range []int{0, 1, 4, 7, 11} {
		best, half := errorOf(t, n, id)
		t.Logf("clock %d: error %d ns, give or take %d", id, best, half)
		// Half a look is what the measurement itself cannot tell.
		if lim := 100 + half; best > lim || best < -lim {
			t.Errorf("clock %d is %d ns off", id, best)
		}
	}
}

// errorOf gives guest minus host by the tightest of many looks at host, guest, host.
func errorOf(t testing.TB, n *native, id int) (ns, half int64) {
	half = 1 << 60
	for range 2000 {
		a := hostTime(t, id)
		g := n.gettime(t, id)
		b := hostTime(t, id)
		if h := (b - a) / 2; h < half {
			half, ns = h, g-(a+(b-a)/2)
		}
	}
	return ns, half
}

// TestTakeOver starts a second Clock on the page of the first, as after a crash of the monitor.
func TestTakeOver(t *testing.T) {
	n := mapNative(t)
	if _, err := NewClock(n.page, Kernel{}, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	before := n.gettime(t, clockMonotonic)
	if _, err := NewClock(n.page, Kernel{}, 0); err != nil {
		t.Fatal(err)
	}
	p, err := asPage(n.page)
	if err != nil {
		t.Fatal(err)
	}
	if after := n.gettime(t, clockMonotonic); after < before {
		t.Errorf("ran backwards by %d", before-after)
	}
	if g := p[wordGen].Load(); g != 2 { // ORDER(none): one thread
		t.Errorf("generation %d, want 2", g)
	}
	if a, b := p.read(1).mono, p.read(2).mono; a.ns(b.s) != b.ns(b.s) || a.new != b.old {
		t.Errorf("the second writer did not carry on the line of the first")
	}
}

var sink time.Time

func BenchmarkGettime(b *testing.B) {
	n := mapNative(b)
	if _, err := NewClock(n.page, Kernel{}, 0); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"ours", func() { n.gettime(b, clockMonotonic) }},
		{"host vDSO by time.Now, two clocks", func() { sink = time.Now() }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				c.f()
			}
		})
	}
}

// FuzzRedirect damages the image: it is changed nowhere but in one jump, and nothing beyond it is touched.
func FuzzRedirect(f *testing.F) {
	img, err := Image()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, uint64(0))
	f.Add(40, uint64(1<<63))
	f.Add(60, ^uint64(0))
	f.Fuzz(func(t *testing.T, at int, v uint64) {
		b := append([]byte(nil), img...)
		if at >= 0 && at <= len(b)-8 {
			binary.LittleEndian.PutUint64(b[at:], v)
		}
		old := append([]byte(nil), b...)
		ok, err := Redirect(b, 0x2000)
		n := 0
		for i := range b {
			if b[i] != old[i] {
				n++
			}
		}
		if n > 5 || n > 0 && !ok || ok && err != nil {
			t.Fatalf("%d bytes changed: %v, %v", n, ok, err)
		}
	})
}
