package mem

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

const (
	testTables = 0x10000
	testSup    = 2 << 20
	testBrk    = 0x1000_0000
)

// rig is a space over a memfd, with memory slots that are only written down.
type rig struct {
	*Space
	slots []region
}

func newRig(t testing.TB, limit uint64) *rig { return newRigOn(t, limit, false) }

func newRigOn(t testing.TB, limit uint64, huge bool) *rig {
	t.Helper()
	flags := unix.MFD_CLOEXEC
	if huge {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("guest", flags)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, abi.UserTop); err != nil {
		t.Fatal(err)
	}
	p, err := unix.MmapPtr(fd, 0, nil, abi.UserTop, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{}
	r.Space = New(Config{
		Memory: fd, Window: unsafe.Slice((*byte)(p), abi.UserTop), Supervisor: make([]byte, testSup), SupervisorGPA: abi.SupGPA,
		TableOffset: testTables, Limit: limit, Huge: huge,
		AddSlot: func(start, end uint64, readonly bool) error {
			r.slots = append(r.slots, region{start: start, end: end, text: readonly})
			return nil
		},
	})
	t.Cleanup(func() {
		for i := range r.regions {
			r.drop(&r.regions[i])
		}
		if err := unix.MunmapPtr(p, abi.UserTop); err != nil {
			t.Error(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	return r
}

// walk reads the entry of va in the page tables; ok: there is a table for it.
func (s *Space) walk(va uint64) (e uint64, ok bool) {
	at := s.tab.root
	for level := 4; ; level-- {
		e = binary.LittleEndian.Uint64(s.cfg.Supervisor[at+uint64(firmware.PTEIndex(va, level))*8:])
		if level == 1 {
			return e, true
		}
		if e&firmware.PTEPresent == 0 {
			return 0, false
		}
		at = e&firmware.PTEAddr - s.cfg.SupervisorGPA
	}
}

// model is a naive address space: what is there, page by page.
type model map[uint64]page

type page struct {
	prot   int
	shared bool
	text   bool
	tag    byte // what the whole page was last filled with
	file   bool
}

func (p page) charged() bool { return p.prot != 0 && !p.file }

// check compares a space with the model, and with itself.
func (r *rig) check(want model) error {
	pages, committed := 0, uint64(0)
	for i, a := range r.regions {
		if a.start >= a.end || a.start%abi.Page != 0 || a.end%abi.Page != 0 || a.end > abi.UserTop {
			return fmt.Errorf("region %d is [%#x,%#x)", i, a.start, a.end)
		}
		if i > 0 {
			b := r.regions[i-1]
			if b.end > a.start {
				return fmt.Errorf("regions overlap: [%#x,%#x) [%#x,%#x)", b.start, b.end, a.start, a.end)
			}
			if b.end == a.start && b.prot == a.prot && b.fd == -1 && a.fd == -1 && a.shared == b.shared && a.name == b.name && a.text == b.text {
				return fmt.Errorf("not merged at %#x", a.start)
			}
		}
		if a.prot&Write != 0 && a.prot&Exec != 0 || a.text && a.prot&Write != 0 {
			return fmt.Errorf("[%#x,%#x) has protection %d, text %v", a.start, a.end, a.prot, a.text)
		}
		committed += a.charge()
		for va := a.start; va < a.end; va += abi.Page {
			pages++
			w, ok := want[va]
			if !ok || w.prot != a.prot || w.shared != a.shared || w.text != a.text || w.file != (a.fd != -1) {
				return fmt.Errorf("page %#x is %+v, the model says %+v (%v)", va, a, w, ok)
			}
			e, _ := r.walk(va)
			if e != 0 && (e&firmware.PTEAddr != va || e&firmware.PTEUser == 0) || e&firmware.PTEWrite != 0 && e&firmware.PTENX == 0 {
				return fmt.Errorf("page %#x has entry %#x", va, e)
			}
			got := 0
			if e&firmware.PTEPresent != 0 {
				got |= Read
			}
			if e&firmware.PTEWrite != 0 {
				got |= Write
			}
			if e&firmware.PTEPresent != 0 && e&firmware.PTENX == 0 {
				got |= Exec
			}
			expect := a.prot
			if expect != 0 {
				expect |= Read // x86 cannot map without reading
			}
			if got != expect {
				return fmt.Errorf("page %#x: tables give %d, region %d", va, got, a.prot)
			}
			if !slotCovers(r.slots, va, a.text) {
				return fmt.Errorf("page %#x lies in no slot", va)
			}
		}
	}
	if pages != len(want) {
		return fmt.Errorf("%d pages, the model has %d", pages, len(want))
	}
	if committed != r.committed || committed > r.cfg.Limit {
		return fmt.Errorf("committed %d, regions charge %d, limit %d", r.committed, committed, r.cfg.Limit)
	}
	for i, a := range r.slots {
		for _, b := range r.slots[:i] {
			if a.start < b.end && b.start < a.end {
				return fmt.Errorf("slots overlap: [%#x,%#x) [%#x,%#x)", a.start, a.end, b.start, b.end)
			}
		}
	}
	return nil
}

func slotCovers(slots []region, va uint64, readonly bool) bool {
	for _, s := range slots {
		if s.start <= va && va < s.end {
			return s.text == readonly
		}
	}
	return false
}

// bytesAgree compares the contents: anonymous pages hold their tag everywhere.
func (r *rig) bytesAgree(want model) error {
	for va, p := range want {
		if p.file {
			continue
		}
		got := r.cfg.Window[va : va+abi.Page]
		if got[0] != p.tag || got[abi.Page/2] != p.tag || got[abi.Page-1] != p.tag {
			return fmt.Errorf("page %#x holds %#x %#x %#x, want %#x", va, got[0], got[abi.Page/2], got[abi.Page-1], p.tag)
		}
	}
	return nil
}

// script drives a space and the model with operations taken from data, and compares after each.
type script struct {
	r     *rig
	m     model
	data  []byte
	brk   uint64
	limit uint64
	tag   byte
}

func (s *script) byte() byte {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return b
}

// The operations happen in two windows of 40 pages, one across a border of 2 MiB and of slots.
func (s *script) addr() uint64 {
	base := uint64(0x2000_0000 - 20*abi.Page)
	b := s.byte()
	if b&0x80 != 0 {
		base = abi.MmapTop - 40*abi.Page
	}
	return base + uint64(b&0x7f)%40*abi.Page
}

func (s *script) length() uint64 { return uint64(s.byte()%12)*abi.Page + uint64(s.byte()%2) }

func (s *script) prot() int { return int(s.byte() & 7) }

func (m model) charged(a, b uint64) (n uint64) {
	for va := a; va < b; va += abi.Page {
		if m[va].charged() {
			n += abi.Page
		}
	}
	return n
}

func (m model) all() (n uint64) {
	for _, p := range m {
		if p.charged() {
			n += abi.Page
		}
	}
	return n
}

func (m model) any(a, b uint64, f func(page, bool) bool) bool {
	for va := a; va < b; va += abi.Page {
		p, ok := m[va]
		if f(p, ok) {
			return true
		}
	}
	return false
}

func isText(p page, _ bool) bool    { return p.text }
func isMapped(_ page, ok bool) bool { return ok }
func isHole(_ page, ok bool) bool   { return !ok }

func (m model) clear(a, b uint64) {
	for va := a; va < b; va += abi.Page {
		delete(m, va)
	}
}

func (s *script) step() error {
	op := s.byte() % 9
	a, n := s.addr(), s.length()
	end := a + up(n)
	prot := s.prot()
	wx := prot&Write != 0 && prot&Exec != 0
	switch op {
	case 0, 1, 2: // mmap anonymous: hint, fixed, fixed and not over another
		flags := unix.MAP_ANONYMOUS | unix.MAP_PRIVATE
		if op > 0 {
			flags |= unix.MAP_FIXED
		}
		if op == 2 {
			flags |= unix.MAP_FIXED_NOREPLACE
		}
		got, e := s.r.Map(a, n, prot, flags, -1, 0)
		charge := up(n)
		if prot == 0 {
			charge = 0
		}
		var want unix.Errno
		over := uint64(0)
		if op > 0 {
			over = s.m.charged(a, end)
		}
		switch {
		case n == 0:
			want = unix.EINVAL
		case wx:
			want = unix.EACCES
		case op > 0 && end > abi.MmapTop:
			want = unix.ENOMEM
		case op == 2 && s.m.any(a, end, isMapped):
			want = unix.EEXIST
		case s.m.all()+charge > s.limit+over:
			want = unix.ENOMEM
		case op > 0 && s.m.any(a, end, isText):
			want = unix.EACCES
		}
		if e != want {
			return fmt.Errorf("map [%#x,%#x) prot %d flags %#x: %v, want %v", a, end, prot, flags, e, want)
		}
		if e != 0 {
			return nil
		}
		if op == 0 && !s.m.any(a, end, isMapped) && end <= abi.MmapTop && got != a || op > 0 && got != a {
			return fmt.Errorf("map at %#x gave %#x", a, got)
		}
		if s.m.any(got, got+up(n), isMapped) && op == 0 {
			return fmt.Errorf("map gave %#x, which is in use", got)
		}
		s.m.clear(got, got+up(n))
		for va := got; va < got+up(n); va += abi.Page {
			s.m[va] = page{prot: prot}
		}
	case 3:
		e := s.r.Unmap(a, n)
		var want unix.Errno
		switch {
		case n == 0:
			want = unix.EINVAL
		case s.m.any(a, end, isText):
			want = unix.EACCES
		}
		if e != want {
			return fmt.Errorf("unmap [%#x,%#x): %v, want %v", a, end, e, want)
		}
		if e == 0 {
			s.m.clear(a, end)
		}
	case 4:
		e := s.r.Protect(a, n, prot)
		grow := uint64(0)
		for va := a; va < end; va += abi.Page {
			p := s.m[va]
			was := p.charged()
			p.prot = prot
			if p.charged() && !was {
				grow += abi.Page
			} else if was && !p.charged() {
				grow -= abi.Page
			}
		}
		var want unix.Errno
		switch {
		case n == 0:
		case wx:
			want = unix.EACCES
		// Linux reports what it meets first.
		case s.m.any(a, end, func(p page, ok bool) bool { return !ok || p.text && prot&Write != 0 }):
			want = unix.ENOMEM
			for va := a; ; va += abi.Page {
				p, ok := s.m[va]
				if !ok {
					break
				}
				if p.text && prot&Write != 0 {
					want = unix.EACCES
					break
				}
			}
		case int64(grow) > 0 && s.m.all()+grow > s.limit:
			want = unix.ENOMEM
		}
		if e != want {
			return fmt.Errorf("protect [%#x,%#x) %d: %v, want %v", a, end, prot, e, want)
		}
		if e == 0 {
			for va := a; va < end; va += abi.Page {
				p := s.m[va]
				p.prot = prot
				s.m[va] = p
			}
		}
	case 5:
		e := s.r.Advise(a, n, unix.MADV_DONTNEED)
		want := unix.Errno(0)
		if s.m.any(a, end, isHole) {
			want = unix.ENOMEM
		}
		if e != want {
			return fmt.Errorf("advise [%#x,%#x): %v, want %v", a, end, e, want)
		}
		for va := a; va < end; va += abi.Page {
			if p, ok := s.m[va]; ok && !p.text && !p.file {
				p.tag = 0
				s.m[va] = p
			}
		}
	case 6: // write through the host, as a system call does
		s.tag++
		p := s.r.Prefix(a, up(n), true)
		k := uint64(0)
		for ; a+k < end && s.m[a+k].prot&Write != 0; k += abi.Page {
		}
		if uint64(len(p)) != k {
			return fmt.Errorf("writable from %#x: %d bytes, want %d", a, len(p), k)
		}
		for i := range p {
			p[i] = s.tag
		}
		for va := a; va < a+k; va += abi.Page {
			q := s.m[va]
			q.tag = s.tag
			s.m[va] = q
		}
	case 7:
		return s.remap(a, n, s.length(), s.byte())
	case 8:
		to := testBrk + uint64(s.byte())*abi.Page/2 - abi.Page
		old := s.brk
		got := s.r.Brk(to)
		want := to
		from, next := up(old), up(to)
		switch {
		case to < testBrk:
			want = old
		case next > from && s.m.all()+next-from > s.limit:
			want = old
		}
		if got != want {
			return fmt.Errorf("brk %#x from %#x: %#x, want %#x", to, old, got, want)
		}
		if want == to {
			for va := from; va < next; va += abi.Page {
				s.m[va] = page{prot: Read | Write}
			}
			s.m.clear(next, from)
			s.brk = to
		}
	}
	return nil
}

func (s *script) remap(a, oldLen, newLen uint64, how byte) error {
	flags, to := 0, uint64(0)
	if how&1 != 0 {
		flags |= unix.MREMAP_MAYMOVE
	}
	if how&2 != 0 {
		flags |= unix.MREMAP_FIXED
		to = s.addr()
	}
	before, charged := make(map[uint64]page, len(s.m)), s.m.all()
	for k, v := range s.m {
		before[k] = v
	}
	got, e := s.r.Remap(a, oldLen, newLen, flags, to)
	if e != 0 {
		// Whatever it refused, nothing but the target of a fixed move may have changed.
		return nil
	}
	oldEnd, o, n := a+up(oldLen), up(oldLen), up(newLen)
	first, there := before[a]
	if flags&unix.MREMAP_FIXED == 0 && newLen > 0 && n <= o && there && !first.text {
		// What shrinks, shrinks whatever lies there; text stays.
		if got != a || s.m.any(a+n, oldEnd, func(p page, _ bool) bool { return p.text }) {
			return fmt.Errorf("remap [%#x,+%#x) to %#x bytes gave %#x", a, oldLen, newLen, got)
		}
		s.m.clear(a+n, oldEnd)
		return nil
	}
	if oldLen == 0 || newLen == 0 || s.m.any(a, oldEnd, isHole) {
		return fmt.Errorf("remap [%#x,+%#x) to %#x bytes succeeded", a, oldLen, newLen)
	}
	if s.m.any(a, oldEnd, func(p page, _ bool) bool { return p.prot != first.prot || p.text || p.shared != first.shared }) {
		return fmt.Errorf("remap across mappings or of text at %#x succeeded", a)
	}
	if got != a && flags&unix.MREMAP_MAYMOVE == 0 || flags&unix.MREMAP_FIXED != 0 && got != to {
		return fmt.Errorf("remap %#x gave %#x with flags %d", a, got, flags)
	}
	if got == a {
		s.m.clear(a+n, oldEnd)
	} else {
		s.m.clear(a, oldEnd)
		s.m.clear(got, got+n)
	}
	for off := uint64(0); off < n; off += abi.Page {
		p := page{prot: first.prot}
		if off < o {
			p = before[a+off]
		} else if got == a && before[a+off] != (page{}) {
			return fmt.Errorf("remap %#x grew over a mapping at %#x", a, a+off)
		}
		s.m[got+off] = p
	}
	if first.prot != 0 && s.m.all() > s.limit {
		return fmt.Errorf("remap went over the limit: %d of %d, %d before", s.m.all(), s.limit, charged)
	}
	return nil
}

func runScript(t testing.TB, data []byte) {
	const limit = 60 * abi.Page
	s := &script{r: newRig(t, limit), m: model{}, data: data, brk: testBrk, limit: limit}
	s.r.SetText(0x2000_0000, 0x2000_0000+2*abi.Page)
	if err := s.r.MapFixed(0x2000_0000, 0x2000_0000+2*abi.Page, Read|Exec, "program"); err != nil {
		t.Fatal(err)
	}
	s.m[0x2000_0000] = page{prot: Read | Exec, text: true}
	s.m[0x2000_0000+abi.Page] = page{prot: Read | Exec, text: true}
	s.r.SetBreak(testBrk)
	for i := 0; len(s.data) > 0; i++ {
		if err := s.step(); err != nil {
			t.Fatalf("step %d: %v\n%s", i, err, s.r.Maps())
		}
		if err := s.r.check(s.m); err != nil {
			t.Fatalf("after step %d: %v\n%s", i, err, s.r.Maps())
		}
		if err := s.r.bytesAgree(s.m); err != nil {
			t.Fatalf("after step %d: %v\n%s", i, err, s.r.Maps())
		}
	}
}

// TestSpaceAgreesWithModel drives random operations and compares with the naive model after each.
func TestSpaceAgreesWithModel(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for seed := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 3000)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runScript(t, data) })
	}
}

// FuzzSpace is the same with operations that the fuzzer chooses.
func FuzzSpace(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz"))
	f.Add(bytes.Repeat([]byte{1, 19, 4, 0, 3, 4, 20, 1, 0, 1}, 4))
	f.Fuzz(func(t *testing.T, data []byte) {
		runScript(t, data[:min(len(data), 2000)]) // longer scripts find nothing new
	})
}

// TestInOutPrefix: edges of pages, of permissions and of the number line.
func TestInOutPrefix(t *testing.T) {
	r := newRig(t, 64<<20)
	const a = 0x3000_0000
	for i, prot := range []int{Read | Write, Read, 0, Exec, Write} {
		if _, e := r.Map(a+uint64(i)*abi.Page, abi.Page, prot, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != 0 {
			t.Fatal(e)
		}
	}
	const max = ^uint64(0)
	for _, c := range []struct {
		at, n   uint64
		in, out int // bytes of Prefix
	}{
		{a, 0, 0, 0}, {a, 1, 1, 1}, {a, abi.Page, abi.Page, abi.Page}, {a + 1, abi.Page, abi.Page, abi.Page - 1},
		{a, abi.Page + 1, abi.Page + 1, abi.Page}, {a, max, 2 * abi.Page, abi.Page}, {a - 1, 2, 0, 0}, {a + abi.Page, 1, 1, 0},
		{a + 2*abi.Page - 1, 2, 1, 0}, {a + 2*abi.Page, 1, 0, 0}, {a + 3*abi.Page, 3 * abi.Page, 2 * abi.Page, 0},
		{a + 4*abi.Page, 8, 8, 8}, {a + 5*abi.Page, 1, 0, 0},
		{max, 1, 0, 0}, {max, 2, 0, 0}, {max - 7, max, 0, 0}, {0, 1, 0, 0}, {0, max, 0, 0}, {abi.UserTop, 1, 0, 0}, {abi.UserTop - 1, 2, 0, 0},
		{1 << 63, 8, 0, 0}, {a, 1 << 63, 2 * abi.Page, abi.Page}, {a, max - a + 1, 2 * abi.Page, abi.Page},
	} {
		if got := len(r.Prefix(c.at, c.n, false)); got != c.in {
			t.Errorf("Prefix(%#x,%#x,read) has %d bytes, want %d", c.at, c.n, got, c.in)
		}
		if got := len(r.Prefix(c.at, c.n, true)); got != c.out {
			t.Errorf("Prefix(%#x,%#x,write) has %d bytes, want %d", c.at, c.n, got, c.out)
		}
		p, e := r.In(c.at, c.n)
		if ok := uint64(c.in) == c.n; ok != (e == 0) || ok && uint64(len(p)) != c.n || !ok && (p != nil || e != unix.EFAULT) {
			t.Errorf("In(%#x,%#x): %d bytes, %v", c.at, c.n, len(p), e)
		}
		p, e = r.Out(c.at, c.n)
		if ok := uint64(c.out) == c.n; ok != (e == 0) || ok && cap(p) != int(c.n) || !ok && (p != nil || e != unix.EFAULT) {
			t.Errorf("Out(%#x,%#x): %d of %d bytes, %v", c.at, c.n, len(p), cap(p), e)
		}
	}
	// A mapped last page below UserTop: the end of the window, not one byte more.
	if err := r.MapFixed(abi.UserTop-abi.Page, abi.UserTop, Read|Write, "[stack]"); err != nil {
		t.Fatal(err)
	}
	if p := r.Prefix(abi.UserTop-8, max, true); len(p) != 8 || cap(p) != 8 {
		t.Errorf("the last bytes: %d of %d", len(p), cap(p))
	}
}

// TestArguments: values that wrap or lie outside get their errno and change nothing.
func TestArguments(t *testing.T) {
	r := newRig(t, 1<<20)
	r.SetBreak(testBrk)
	const fixed = unix.MAP_FIXED | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	const max = ^uint64(0)
	for _, c := range []struct {
		addr, n uint64
		flags   int
		want    unix.Errno
	}{
		{0, 0, fixed, unix.EINVAL}, {0, abi.Page, fixed, unix.EPERM}, {abi.LowestUser - abi.Page, abi.Page, fixed, unix.EPERM},
		{abi.LowestUser + 1, abi.Page, fixed, unix.EINVAL}, {abi.MmapTop, abi.Page, fixed, unix.ENOMEM}, {abi.MmapTop - abi.Page, 2 * abi.Page, fixed, unix.ENOMEM},
		{max &^ 0xfff, abi.Page, fixed, unix.ENOMEM}, {abi.LowestUser, max, fixed, unix.ENOMEM}, {0, max, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, unix.ENOMEM},
		{0, abi.UserTop, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, unix.ENOMEM}, {0, abi.Page, unix.MAP_ANONYMOUS, unix.EINVAL}, {0, abi.Page, unix.MAP_PRIVATE, unix.EBADF},
		{0, 2 << 20, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, unix.ENOMEM},
	} {
		if a, e := r.Map(c.addr, c.n, Read, c.flags, -1, 0); e != c.want && !(c.want == unix.EBADF && e == unix.ENODEV) {
			t.Errorf("Map(%#x,%#x,%#x) = %#x, %v, want %v", c.addr, c.n, c.flags, a, e, c.want)
		}
	}
	for _, a := range []uint64{1, max, max &^ 0xfff, abi.UserTop, 1 << 63} {
		for _, n := range []uint64{0, 1, abi.Page, abi.UserTop, 1 << 63, max} {
			r.Unmap(a, n)
			r.Protect(a, n, Read|Write)
			r.Advise(a, n, unix.MADV_DONTNEED)
			r.Sync(a, n, unix.MS_SYNC)
			r.Remap(a, n, abi.Page, unix.MREMAP_MAYMOVE, 0)
			r.Remap(a&^0xfff, n, n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, a&^0xfff)
			r.Brk(a)
		}
	}
	if err := r.check(model{}); err != nil {
		t.Error(err)
	}
}

// TestPlace: without a hint the highest free range below MmapTop is taken, holes are filled, and room for the
// heap stays.
func TestPlace(t *testing.T) {
	r := newRig(t, 1<<30)
	r.SetBreak(testBrk)
	get := func(n uint64) uint64 {
		t.Helper()
		a, e := r.Map(0, n*abi.Page, Read|Write, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
		if e != 0 {
			t.Fatal(e)
		}
		return a
	}
	a, b, c := get(4), get(4), get(4)
	if a != abi.MmapTop-4*abi.Page || b != a-4*abi.Page || c != b-4*abi.Page {
		t.Fatalf("%#x %#x %#x", a, b, c)
	}
	if e := r.Unmap(b, 4*abi.Page); e != 0 {
		t.Fatal(e)
	}
	if d := get(5); d != c-5*abi.Page {
		t.Errorf("5 pages at %#x", d)
	}
	if d := get(3); d != b+abi.Page {
		t.Errorf("3 pages at %#x, want the hole at %#x", d, b+abi.Page)
	}
	if d := get(1); d != b {
		t.Errorf("1 page at %#x, want %#x", d, b)
	}
	// Everything above the heap's room, without committing it.
	if a, e := r.Map(0, abi.MmapTop-testBrk-heapRoom, 0, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != unix.ENOMEM {
		t.Errorf("a range that cannot be there: %#x, %v", a, e)
	}
	rest := c - 5*abi.Page - testBrk - heapRoom
	if a, e := r.Map(0, rest, 0, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != 0 || a != testBrk+heapRoom {
		t.Errorf("all that is left: %#x, %v", a, e)
	}
	if a, e := r.Map(0, abi.Page, 0, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != unix.ENOMEM {
		t.Errorf("one more: %#x, %v", a, e)
	}
	if got := r.Brk(testBrk + heapRoom); got != testBrk+heapRoom {
		t.Errorf("brk into its room: %#x", got)
	}
}

// TestSharedFile: a shared mapping is the file, at every size of protection, and is the guest's memory again
// when it is gone; a private one is a copy.
func TestSharedFile(t *testing.T) {
	r := newRig(t, 1<<20)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, bytes.Repeat([]byte{'f'}, 3*abi.Page+100), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, e := r.Map(0, 4*abi.Page, Read|Write, unix.MAP_SHARED, int(f.Fd()), 0)
	if e != 0 {
		t.Fatal(e)
	}
	if used, _ := r.Usage(); used != 0 {
		t.Errorf("a shared file charges %d bytes", used)
	}
	p, e := r.Out(a, 4*abi.Page)
	if e != 0 {
		t.Fatal(e)
	}
	p[abi.Page] = 'g'
	var b [1]byte
	if _, err := f.ReadAt(b[:], abi.Page); err != nil || b[0] != 'g' {
		t.Errorf("the file holds %c, %v", b[0], err)
	}
	if _, err := f.WriteAt([]byte{'h'}, 2*abi.Page); err != nil {
		t.Fatal(err)
	}
	if p[2*abi.Page] != 'h' {
		t.Errorf("the guest sees %c", p[2*abi.Page])
	}
	if e := r.Sync(a, 4*abi.Page, unix.MS_SYNC); e != 0 {
		t.Error(e)
	}
	// A hole in the middle splits it; the second half keeps its offset.
	if e := r.Unmap(a+abi.Page, abi.Page); e != 0 {
		t.Fatal(e)
	}
	if q := r.cfg.Window[a+abi.Page]; q != 0 {
		t.Errorf("behind the hole lies %c", q)
	}
	if q := r.cfg.Window[a+2*abi.Page]; q != 'h' {
		t.Errorf("the second half shows %c", q)
	}
	if e := r.Protect(a+2*abi.Page, abi.Page, Read); e != 0 {
		t.Error(e)
	}
	if q := r.cfg.Window[a+2*abi.Page]; q != 'h' {
		t.Errorf("read-only, it shows %c", q)
	}
	// Moved, it is still the file.
	to, e := r.Remap(a+2*abi.Page, abi.Page, abi.Page, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, 0x3000_0000)
	if e != 0 || to != 0x3000_0000 || r.cfg.Window[to] != 'h' {
		t.Errorf("moved to %#x: %v, shows %c", to, e, r.cfg.Window[0x3000_0000])
	}
	if q := r.cfg.Window[a+2*abi.Page]; q != 0 {
		t.Errorf("where it was lies %c", q)
	}
	// Gone, it is anonymous memory that does not write to the file.
	if e := r.Unmap(0x3000_0000, abi.Page); e != 0 {
		t.Error(e)
	}
	if _, e := r.Map(0x3000_0000, abi.Page, Read|Write, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != 0 {
		t.Fatal(e)
	}
	r.cfg.Window[0x3000_0000] = 'x'
	if _, err := f.ReadAt(b[:], 2*abi.Page); err != nil || b[0] != 'h' {
		t.Errorf("the file holds %c after its mapping was replaced, %v", b[0], err)
	}
	// A private mapping with an offset, beyond the end as well.
	c, e := r.Map(0, 3*abi.Page, Read|Write, unix.MAP_PRIVATE, int(f.Fd()), 2*abi.Page)
	if e != 0 {
		t.Fatal(e)
	}
	if w := r.cfg.Window[c:]; w[0] != 'h' || w[abi.Page+99] != 'f' || w[abi.Page+100] != 0 || w[2*abi.Page] != 0 {
		t.Errorf("private copy: %c %c %d %d", w[0], w[abi.Page+99], w[abi.Page+100], w[2*abi.Page])
	}
	r.cfg.Window[c] = 'y'
	if _, err := f.ReadAt(b[:], 2*abi.Page); err != nil || b[0] != 'h' {
		t.Errorf("a private write reached the file: %c, %v", b[0], err)
	}
}

// TestSharedReadOnlyFile: what the file does not allow, no protection change gives.
func TestSharedReadOnlyFile(t *testing.T) {
	r := newRig(t, 1<<20)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if a, e := r.Map(0, abi.Page, Read|Write, unix.MAP_SHARED, int(f.Fd()), 0); e != unix.EACCES {
		t.Errorf("writable mapping of a read-only file: %#x, %v", a, e)
	}
	if err := r.check(model{}); err != nil {
		t.Error(err)
	}
	a, e := r.Map(0, abi.Page, Read, unix.MAP_SHARED, int(f.Fd()), 0)
	if e != 0 {
		t.Fatal(e)
	}
	if e := r.Protect(a, abi.Page, Read|Write); e != unix.EACCES {
		t.Errorf("raised to writable: %v", e)
	}
	if _, e := r.Out(a, 1); e != unix.EFAULT {
		t.Errorf("Out: %v", e)
	}
}

// TestDescriptorsRunOut: a shared mapping that is split when no descriptor is left stays what it is: its two
// halves show the file, charge nothing, and go without a trace.
func TestDescriptorsRunOut(t *testing.T) {
	r := newRig(t, 1<<20)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 4*abi.Page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, e := r.Map(0, 4*abi.Page, Read, unix.MAP_SHARED, int(f.Fd()), 0)
	if e != 0 {
		t.Fatal(e)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	e = r.Protect(a+2*abi.Page, 2*abi.Page, 0)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if e != 0 || r.regions[len(r.regions)-1].fd != -2 {
		t.Fatalf("split without a descriptor: %v\n%s", e, r.Maps())
	}
	if used, _ := r.Usage(); used != 0 {
		t.Errorf("%d bytes charged", used)
	}
	if e := r.Protect(a+2*abi.Page, abi.Page, Read); e != 0 {
		t.Errorf("readable again: %v", e)
	}
	if e := r.Protect(a+2*abi.Page, abi.Page, Read|Write); e != unix.EACCES {
		t.Errorf("writable, though its host mapping is not: %v", e)
	}
	if _, e := r.Remap(a+2*abi.Page, abi.Page, abi.Page, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, 0x3000_0000); e != unix.EINVAL {
		t.Errorf("moved: %v", e)
	}
	if e := r.Unmap(a, 4*abi.Page); e != 0 {
		t.Error(e)
	}
	if err := r.check(model{}); err != nil {
		t.Error(err)
	}
}

// reserveHuge makes sure that n huge pages are free until the test ends.
func reserveHuge(t *testing.T, n int) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.HugePages(n))
	release, err := testenv.ReserveHuge(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
}

// TestHuge: on 2 MiB pages a part of one is zeroed by hand, a whole one given back, and the neighbours stay.
func TestHuge(t *testing.T) {
	reserveHuge(t, 6)
	r := newRigOn(t, 64<<20, true)
	const a, n = 0x4000_0000, 3 * abi.Huge
	if _, e := r.Map(a, n, Read|Write, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != 0 {
		t.Fatal(e)
	}
	fill := func() {
		w := r.cfg.Window[a : a+n]
		for i := range w {
			w[i] = 0x5a
		}
	}
	for _, c := range []struct{ off, n uint64 }{
		{abi.Page, abi.Page}, {0, abi.Huge}, {abi.Huge - abi.Page, 2 * abi.Page}, {abi.Huge - abi.Page, abi.Huge + 2*abi.Page}, {0, n},
	} {
		fill()
		if e := r.Unmap(a+c.off, c.n); e != 0 {
			t.Fatalf("unmap +%#x %#x: %v", c.off, c.n, e)
		}
		if _, e := r.Map(a+c.off, c.n, Read|Write, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != 0 {
			t.Fatal(e)
		}
		for off := uint64(0); off < n; off += abi.Page / 2 {
			want := byte(0x5a)
			if off >= c.off && off < c.off+c.n {
				want = 0
			}
			if got := r.cfg.Window[a+off]; got != want {
				t.Fatalf("unmapped +%#x %#x: at +%#x lies %#x, want %#x", c.off, c.n, off, got, want)
			}
		}
	}
	fill()
	if e := r.Protect(a+abi.Page, abi.Page, 0); e != 0 {
		t.Error(e)
	}
	if e := r.Advise(a+2*abi.Page, abi.Page, unix.MADV_DONTNEED); e != 0 {
		t.Error(e)
	}
	if w := r.cfg.Window[a:]; w[0] != 0x5a || w[abi.Page] != 0x5a || w[2*abi.Page] != 0 || w[3*abi.Page] != 0x5a {
		t.Errorf("%#x %#x %#x %#x", w[0], w[abi.Page], w[2*abi.Page], w[3*abi.Page])
	}
	if err := r.Populate(); err != nil {
		t.Error(err)
	}
	// A file cannot lie behind a part of a huge page: refused, and what was there stays whole.
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, abi.Page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at, e := r.Map(0, abi.Page, Read, unix.MAP_SHARED, int(f.Fd()), 0); e != unix.ENODEV {
		t.Errorf("shared file on huge pages: %#x, %v, want ENODEV", at, e)
	}
}

// TestHugeInterrupted: a signal that arrives while huge pages are taken is nothing that the program hears of.
func TestHugeInterrupted(t *testing.T) {
	const n = 8
	reserveHuge(t, n)
	r := newRigOn(t, 64<<20, true)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, tid := unix.Getpid(), unix.Gettid()
	var over atomic.Bool
	var sender sync.WaitGroup
	sender.Go(func() {
		for !over.Load() { // ORDER(none): a flag to end by
			if err := unix.Tgkill(pid, tid, unix.SIGURG); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 100 {
		if _, e := r.Map(0x4000_0000, n*abi.Huge, Read|Write, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0); e != 0 {
			t.Errorf("map %d: %v", i, e)
			break
		}
		if e := r.Unmap(0x4000_0000, n*abi.Huge); e != 0 {
			t.Errorf("unmap %d: %v", i, e)
			break
		}
	}
	over.Store(true)
	sender.Wait()
}

// TestRangesOfFiles: what is touched at sealing are the memory files that cannot shrink, as far as they go; never a file of
// the disk, whose holes a touch would fill, nor what lies behind an end, where it would be a fault.
func TestRangesOfFiles(t *testing.T) {
	r := newRig(t, 1<<20)
	file, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	memory := func(size int64, seals int) int {
		fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	if err := file.Truncate(4 * abi.Page); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		fd    int
		off   int64
		prot  int
		pages uint64 // of the 4 that are mapped
	}{
		{"disk", int(file.Fd()), 0, Read | Write, 0},
		{"open memory", memory(4*abi.Page, 0), 0, Read | Write, 0},
		{"sealed", memory(4*abi.Page, unix.F_SEAL_SHRINK), 0, Read | Write, 4},
		{"sealed, read", memory(4*abi.Page, unix.F_SEAL_SHRINK), 0, Read, 4},
		{"sealed, short", memory(abi.Page+1, unix.F_SEAL_SHRINK), 0, Read | Write, 2},
		{"sealed, from its second page", memory(3*abi.Page, unix.F_SEAL_SHRINK), abi.Page, Read | Write, 2},
		{"behind the end", memory(abi.Page, unix.F_SEAL_SHRINK), abi.Page, Read | Write, 0},
		{"no access", memory(4*abi.Page, unix.F_SEAL_SHRINK), 0, 0, 0},
	} {
		at, e := r.Map(0, 4*abi.Page, c.prot, unix.MAP_SHARED, c.fd, c.off)
		if e != 0 {
			t.Fatalf("%s: %v", c.name, e)
		}
		got := uint64(0)
		r.Ranges(func(start, end uint64, write bool) {
			if start == at {
				got = (end - start) / abi.Page
				if write != (c.prot&Write != 0) {
					t.Errorf("%s: write %v", c.name, write)
				}
			}
		})
		if got != c.pages {
			t.Errorf("%s: %d pages are touched, want %d", c.name, got, c.pages)
		}
		if err := r.Populate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Blocks != 0 {
		t.Errorf("the sparse file has %d blocks, %v", st.Blocks, err)
	}
}
