package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// pages maps memory that starts a page.
func pages(t testing.TB, n int) []byte {
	t.Helper()
	mem, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

func pair(t testing.TB, size int) (*Producer, *Consumer, []byte) {
	t.Helper()
	mem := pages(t, abi.RingData+size)
	if err := Format(mem); err != nil {
		t.Fatal(err)
	}
	p, err := NewProducer(mem)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConsumer(mem)
	if err != nil {
		t.Fatal(err)
	}
	return p, c, mem
}

// A ring behaves as a queue with a limit in bytes, whatever the lengths of records and wherever they cross the end.
func TestRingIsAQueue(t *testing.T) {
	p, c, _ := pair(t, abi.RingMinSize)
	rng := rand.New(rand.NewPCG(1, 2))
	var queue [][]byte
	used, fulls, crossings := uint64(0), 0, 0
	buf := make([]byte, p.Max())
	for range 200_000 {
		if rng.IntN(2) == 0 {
			rec := make([]byte, rng.IntN([]int{1, 9, 100, p.Max() + 1}[rng.IntN(4)]))
			for i := range rec {
				rec[i] = byte(rng.Uint32())
			}
			need := span(uint64(len(rec)))
			if at := p.head % abi.RingMinSize; at+need > abi.RingMinSize {
				crossings++
			}
			switch err := p.Put(rec); {
			case used+need > abi.RingMinSize:
				if err != ErrFull {
					t.Fatalf("%d bytes used, a record of %d: %v", used, len(rec), err)
				}
				fulls++
			case err != nil:
				t.Fatal(err)
			default:
				queue, used = append(queue, rec), used+need
			}
			continue
		}
		if len(queue) > 0 && len(queue[0]) > 0 && rng.IntN(8) == 0 {
			if n, err := c.Get(buf[:len(queue[0])-1]); err != ErrShort || n != len(queue[0]) {
				t.Fatalf("a short buffer: %d, %v", n, err)
			}
		}
		n, err := c.Get(buf)
		if len(queue) == 0 {
			if err != ErrEmpty {
				t.Fatalf("empty: %d, %v", n, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(buf[:n], queue[0]) {
			t.Fatalf("got %d bytes, %v; want %d", n, err, len(queue[0]))
		}
		used -= span(uint64(n))
		queue = queue[1:]
	}
	if fulls < 100 || crossings < 100 {
		t.Errorf("%d times full, %d records across the end: the test does not try enough", fulls, crossings)
	}
	if err := p.Put(make([]byte, p.Max()+1)); err != ErrTooLong {
		t.Errorf("a record too long: %v", err)
	}
}

// Two threads that keep to the protocol lose and mix nothing; the end comes behind the last record.
func TestTwoThreads(t *testing.T) {
	p, c, _ := pair(t, abi.RingMinSize)
	const records = 300_000
	done := make(chan error, 1)
	go func() {
		rec := make([]byte, 64)
		for i := range uint64(records) {
			n := 8 + i%57
			for j := range n {
				rec[j] = byte(i + j)
			}
			binary.LittleEndian.PutUint64(rec, i)
			for {
				err := p.Put(rec[:n])
				if err == nil {
					break
				}
				if err != ErrFull {
					done <- err
					return
				}
				runtime.Gosched()
			}
		}
		p.Drop()
		p.CloseWrite()
		done <- nil
	}()
	buf := make([]byte, 64)
	for i := uint64(0); ; {
		n, err := c.Get(buf)
		if err == ErrEmpty {
			runtime.Gosched()
			continue
		}
		if err == io.EOF {
			if i != records {
				t.Errorf("the end after %d records of %d", i, records)
			}
			break
		}
		if err != nil || uint64(n) != 8+i%57 || binary.LittleEndian.Uint64(buf) != i {
			t.Fatalf("record %d: %d bytes, %v, number %d", i, n, err, binary.LittleEndian.Uint64(buf))
		}
		for j := 8; j < n; j++ {
			if buf[j] != byte(i+uint64(j)) {
				t.Fatalf("record %d: byte %d is %d", i, j, buf[j])
			}
		}
		i++
	}
	if err := <-done; err != nil || c.Dropped() != 1 {
		t.Errorf("producer: %v; %d dropped", err, c.Dropped())
	}
	if _, err := NewProducer(c.data); err == nil {
		t.Error("a producer of memory that is no ring")
	}
}

// Whatever a header says, both sides refuse it in words or stay inside.
func TestHeadersAreJudged(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(h *abi.RingHeader)
		want string
	}{
		{"magic", func(h *abi.RingHeader) { h.Magic++ }, "magic"},
		{"version", func(h *abi.RingHeader) { h.Version = 2 }, "version 2"},
		{"size of no power", func(h *abi.RingHeader) { h.Size-- }, "damaged"},
		{"size beyond", func(h *abi.RingHeader) { h.Size *= 2 }, "damaged"},
		{"size huge", func(h *abi.RingHeader) { h.Size = 1 << 63 }, "damaged"},
		{"size 0", func(h *abi.RingHeader) { h.Size = 0 }, "damaged"},
		{"data", func(h *abi.RingHeader) { h.Data = 8 }, "damaged"},
		{"head ahead", func(h *abi.RingHeader) { h.Head = 4104 }, ErrCorrupt.Error()},
		{"head odd", func(h *abi.RingHeader) { h.Head = 4 }, ErrCorrupt.Error()},
		{"tail ahead", func(h *abi.RingHeader) { h.Tail = 8 }, ErrCorrupt.Error()},
		{"both odd", func(h *abi.RingHeader) { h.Head, h.Tail = 12, 4 }, ErrCorrupt.Error()},
	} {
		_, cons, mem := pair(t, abi.RingMinSize)
		c.do(cons.h)
		for side, attach := range map[string]func() error{
			"producer": func() error { _, err := NewProducer(mem); return err },
			"consumer": func() error { _, err := NewConsumer(mem); return err },
		} {
			if err := attach(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: %v", c.name, side, err)
			}
		}
	}
	_, cons, mem := pair(t, abi.RingMinSize)
	cons.h.Closed = 1
	if _, err := NewProducer(mem); err != ErrClosed {
		t.Errorf("a closed ring: %v", err)
	}
	for _, n := range []int{0, 100, abi.RingData, abi.RingData + 100} {
		if err := Format(make([]byte, n)); err == nil {
			t.Errorf("Format of %d bytes", n)
		}
		if _, err := NewConsumer(make([]byte, n)); err == nil {
			t.Errorf("NewConsumer of %d bytes", n)
		}
	}
	if err := Format(mem[8:]); err == nil {
		t.Error("Format off a page's border")
	}
}

// The other side can hang or spoil this side's ring, and nothing more; what is spoilt stays so.
func TestCorruptionStays(t *testing.T) {
	p, c, _ := pair(t, abi.RingMinSize)
	buf := make([]byte, 100)
	if err := p.Put(buf); err != nil {
		t.Fatal(err)
	}
	c.h.Head = 1 << 40
	if _, err := c.Get(buf); err != ErrCorrupt {
		t.Errorf("a head far ahead: %v", err)
	}
	c.h.Head = c.tail
	if _, err := c.Get(buf); err != ErrCorrupt {
		t.Errorf("then a good one: %v", err)
	}

	p, _, _ = pair(t, abi.RingMinSize)
	for p.Put(buf) == nil {
	}
	p.h.Tail = p.head + 8
	if err := p.Put(buf); err != ErrCorrupt {
		t.Errorf("a tail beyond the head: %v", err)
	}
	p.h.Tail = 0
	if err := p.Put(nil); err != ErrCorrupt {
		t.Errorf("then a good one: %v", err)
	}

	p, c, _ = pair(t, abi.RingMinSize)
	if err := p.Put(buf); err != nil {
		t.Fatal(err)
	}
	c.words[0] = 105 // longer than what was published, within the ring
	if _, err := c.Get(make([]byte, 4096)); err != ErrCorrupt {
		t.Errorf("a length beyond the head: %v", err)
	}

	for _, length := range []uint64{^uint64(0), ^uint64(6), 1 << 63, abi.RingMinSize} { // the first two wrap when they are rounded up
		p, c, _ = pair(t, abi.RingMinSize)
		if err := p.Put(buf); err != nil {
			t.Fatal(err)
		}
		c.words[0] = length
		if n, err := c.Get(buf); err != ErrCorrupt {
			t.Errorf("a length of %#x: %d, %v", length, n, err)
		}
	}

	p, c, _ = pair(t, abi.RingMinSize)
	for range 100 {
		for p.Put(buf) == nil {
		}
		if _, err := c.Get(buf); err != nil {
			t.Fatal(err)
		}
	}
	p.h.Tail = p.tail - 8
	if err := p.Put(buf); err != ErrCorrupt {
		t.Errorf("a tail that goes back: %v", err)
	}
}

func TestNothingAllocates(t *testing.T) {
	p, c, _ := pair(t, abi.RingMinSize)
	rec, buf := make([]byte, 48), make([]byte, 64)
	if n := testing.AllocsPerRun(1000, func() {
		if err := p.Put(rec); err != nil {
			t.Error(err)
		}
		if _, err := c.Get(buf); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A ring file must be sealed, and has one producer and one consumer among those who open it.
func TestOpen(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenConsumer(plain); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a file that can shrink: %v", err)
	}
	if _, err := OpenProducer(plain + "-not"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	f := sealedFile(t, abi.RingData+abi.RingMinSize)
	if _, err := OpenConsumer(f); err == nil || !strings.Contains(err.Error(), "magic") {
		t.Errorf("no header: %v", err)
	}
	mem, err := open(f, 7, "formatter")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Format(mem), syscall.Munmap(mem)); err != nil {
		t.Fatal(err)
	}
	p, err := OpenProducer(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenProducer(f); err == nil || !strings.Contains(err.Error(), "producer already") {
		t.Errorf("a second producer: %v", err)
	}
	c, err := OpenConsumer(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Put([]byte("over two mappings")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p, err = OpenProducer(f)
	if err != nil {
		t.Fatalf("when the first has closed it: %v", err)
	}
	buf := make([]byte, 64)
	if n, err := c.Get(buf); err != nil || string(buf[:n]) != "over two mappings" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if err := errors.Join(p.Close(), c.Close()); err != nil {
		t.Error(err)
	}
}

// FuzzConsumer: arbitrary memory, which changes under the reader, makes it read nothing beyond the ring and end.
func FuzzConsumer(f *testing.F) {
	f.Add([]byte("\x10\x00\x00\x00\x00\x00\x00\x00"), []byte{0, 16, 1, 200, 2, 8, 0, 0})
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), []byte{0, 255, 1, 255, 0, 1})
	f.Add([]byte{}, []byte{3, 1, 0, 8, 4, 4})
	f.Fuzz(func(t *testing.T, data, script []byte) {
		mem := pages(t, abi.RingData+abi.RingMinSize)
		if err := Format(mem); err != nil {
			t.Fatal(err)
		}
		c, err := NewConsumer(mem)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(c.data) && len(data) > 0; i += len(data) {
			copy(c.data[i:], data)
		}
		buf := make([]byte, abi.RingMinSize)
		taken := uint64(0)
		for len(script) >= 2 {
			what, v := script[0], uint64(script[1])
			script = script[2:]
			switch what % 5 {
			case 0:
				c.h.Head += v * 8
			case 1:
				c.h.Head += v << 11
			case 2:
				c.data[v*16%uint64(len(c.data))] = byte(v)
			case 3:
				c.h.Closed = v
			case 4:
				c.h.Tail, c.h.Size, c.h.Magic = v, v, v // none of them is looked at again
			}
			before := c.tail
			n, err := c.Get(buf)
			switch {
			case err == nil && (n < 0 || n > c.Max() || c.tail-before != span(uint64(n)) || c.tail-before > abi.RingMinSize):
				t.Fatalf("a record of %d, the tail moves by %d", n, c.tail-before)
			case err != nil && c.tail != before:
				t.Fatalf("%v, and the tail moves by %d", err, c.tail-before)
			case err == nil:
				taken += span(uint64(n))
			}
		}
	})
}

// FuzzProducer: an arbitrary consumer never makes the producer write over what was not taken, nor beyond the ring.
func FuzzProducer(f *testing.F) {
	f.Add([]byte{0, 100, 1, 8, 0, 255, 2, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		p, _, _ := pair(t, abi.RingMinSize)
		rec := make([]byte, abi.RingMinSize)
		for len(script) >= 2 {
			what, v := script[0], uint64(script[1])
			script = script[2:]
			switch what % 3 {
			case 0:
				room := uint64(len(p.data)) - (p.head - p.h.Tail)
				sane := p.h.Tail-p.tail <= p.head-p.tail && p.h.Tail%8 == 0
				n := v * 16
				if err := p.Put(rec[:n]); err == nil && sane && span(n) > room {
					t.Fatalf("%d bytes into room for %d", n, room)
				}
			case 1:
				p.h.Tail += v * 8
			case 2:
				p.h.Tail = v << 56
			}
			if p.head-p.tail > uint64(len(p.data)) {
				t.Fatalf("head %d, tail %d", p.head, p.tail)
			}
		}
	})
}
