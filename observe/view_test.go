package observe

import (
	"context"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// views are a sealed VM now and a second before, and one whose monitor was killed.
func views(t *testing.T) (before, now, orphan *Status) {
	vm, s := fake(t)
	before = NewStatus(vm, s)
	_, later := fake(t)
	later.Now += hz
	c := &later.VCPUs[0].Counts
	book(c, breaks.Sealed, breaks.Syscall, 3, 180_000)
	c.Book[breaks.Sealed].Kernel[breaks.KernelExits] += 6 + 250
	c.Book[breaks.Sealed].Kernel[breaks.KernelEmulation] += 3
	c.Book[breaks.Sealed].Kernel[breaks.KernelIRQ] += 250
	now = NewStatus(vm, later)
	vm.Monitor, later.Memory.Monitor = 0, nil
	for i := range later.VCPUs {
		later.VCPUs[i].NoStatistics = true
	}
	return before, now, NewStatus(vm, later)
}

func TestTables(t *testing.T) {
	before, now, orphan := views(t)
	var b strings.Builder
	vm, _ := fake(t)
	vm.Name = "new"
	starting := NewStatus(vm, &Snapshot{})
	lost := NewStatus(VM{Name: "stuck", Engine: 7}, nil)
	lost.Trouble = "deadline exceeded"
	for _, f := range []func() error{
		func() error { return WriteList(&b, []*Status{now, orphan, starting, lost}) },
		func() error { b.WriteString("--- rates\n"); return WriteStats(&b, before, now) },
		func() error { b.WriteString("--- first look\n"); return WriteStats(&b, nil, now) },
		func() error { b.WriteString("--- no monitor\n"); return WriteStats(&b, nil, orphan) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "testdata/tables.txt", b.String())
}

// What a VM is called cannot move the cursor of who looks at it.
func TestTablesAreClean(t *testing.T) {
	vm, s := fake(t)
	vm.Name, vm.Program = "a\x1b[2J\tb\n", "/x\r\x07"
	var b strings.Builder
	if err := WriteList(&b, []*Status{NewStatus(vm, s)}); err != nil {
		t.Fatal(err)
	}
	if err := WriteStats(&b, nil, NewStatus(vm, s)); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\r\x07\t") {
		t.Errorf("%q", b.String())
	}
}

func TestStates(t *testing.T) {
	for _, x := range []struct {
		c    breaks.Counts
		want string
	}{
		{breaks.Counts{State: breaks.StateNew}, Starting},
		{breaks.Counts{State: breaks.StateGuest}, Starting},
		{breaks.Counts{State: breaks.StateGuest, Start: 1}, Open},
		{breaks.Counts{State: breaks.StateServing, Start: 1, Sealed: 1}, Sealed},
		{breaks.Counts{State: breaks.StateParked, Start: 1, Sealed: 1}, Parked},
		{breaks.Counts{State: breaks.StateIdle, Start: 1}, Idle},
		{breaks.Counts{State: breaks.StateEnded, Start: 1, Sealed: 1}, Ended},
	} {
		s, err := always(&Snapshot{VCPUs: []Ledger{{Counts: x.c}}})(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if got := NewStatus(VM{}, s).State; got != x.want {
			t.Errorf("state %d, start %d, sealed %d: %s, want %s", x.c.State, x.c.Start, x.c.Sealed, got, x.want)
		}
	}
	if got := NewStatus(VM{}, nil).State; got != NotKnown {
		t.Error(got)
	}
}

func TestFigures(t *testing.T) {
	for _, x := range []struct{ got, want string }{
		{span(0), "0s"}, {span(999), "999ns"}, {span(1500), "1.5µs"}, {span(123456), "123µs"}, {span(99_994_000), "99.99ms"},
		{span(12_345_678_901), "12.35s"}, {span(3_723_400_000_000), "1h2m3s"}, {span(1<<64 - 1), "2562047h47m16.854775807s"},
		{perSecond(0, 1e9), "0"}, {perSecond(5, 0), "-"}, {perSecond(1, 1e9), "1"}, {perSecond(1234, 1e9), "1234"}, {perSecond(1, 3e9), "0.333"},
		{perSecond(1, 3600e9), "<0.01"}, {size(5 << 20), "5120 KiB"}, {size(64 << 20), "64 MiB"},
	} {
		if x.got != x.want {
			t.Errorf("%q, want %q", x.got, x.want)
		}
	}
}

func TestScreen(t *testing.T) {
	var b strings.Builder
	s, err := OpenScreen(&b, func() (int, int) { return 4, 2 })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Draw("ab\nµµµµµµ\nthird\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}
	want := "\x1b[?1049h\x1b[?25l" + "\x1b[Hab\x1b[K\r\nµµµµ\x1b[K\x1b[J" + "\x1b[?25h\x1b[?1049l"
	if b.String() != want {
		t.Errorf("%q\nwant %q", b.String(), want)
	}
}
