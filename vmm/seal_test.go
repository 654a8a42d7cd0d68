package vmm

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// sealLoop asks to be sealed and unsealed for ever: the result of the first is at stopData+8.
var sealLoop = []byte{
	0xbb, 0x00, 0x00, 0x60, 0x00, // mov $stopData,%ebx
	0xb8, 0x00, 0x4c, 0x43, 0x00, // 1: mov $SysIsolate,%eax
	0xbf, 0x01, 0x00, 0x00, 0x00, // mov $1,%edi
	0x0f, 0x05, // syscall
	0x48, 0x89, 0x43, 0x08, // mov %rax,8(%rbx)
	0x48, 0xff, 0x03, // incq (%rbx)
	0xb8, 0x00, 0x4c, 0x43, 0x00, // mov $SysIsolate,%eax
	0x31, 0xff, // xor %edi,%edi
	0x0f, 0x05, // syscall
	0xeb, 0xe2, // jmp 1b
}

// Whoever may refuse a seal is asked each time, and a refusal is EAGAIN and no more: the vCPU runs on, unsealed.
func TestSealIsRefused(t *testing.T) {
	var refuse atomic.Bool
	var asked atomic.Int64
	g := stopStart(t, sealLoop, func(c *Config) {
		c.MaySeal = func(vcpu int, over <-chan struct{}) error {
			asked.Add(1)
			if vcpu != 0 || over == nil {
				t.Errorf("asked for vCPU %d, over %v", vcpu, over)
			}
			if refuse.Load() {
				return errors.New("the core is not quiet")
			}
			return nil
		}
	})
	look := func() (result int64, seals, asks int64) {
		t.Helper()
		g.runs(t, g.counter()) // a round that began before
		g.runs(t, g.counter())
		p, err := g.Pause(stopTime)
		if err != nil {
			t.Fatal(err)
		}
		result, seals, asks = int64(binary.LittleEndian.Uint64(g.window[stopData+8:])), int64(g.ledger.Seals), asked.Load()
		if err := p.Resume(stopTime); err != nil {
			t.Fatal(err)
		}
		return result, seals, asks
	}
	for range 3 {
		refuse.Store(false)
		result, before, asks := look()
		if result != 0 || before == 0 || asks < before {
			t.Fatalf("granted: result %d, sealed %d times, asked %d times", result, before, asks)
		}
		refuse.Store(true)
		if result, before, asks = look(); result != -int64(unix.EAGAIN) {
			t.Fatalf("refused: result %d, want -EAGAIN", result)
		}
		if _, after, more := look(); after != before || more <= asks {
			t.Fatalf("refused, and sealed %d times more; asked %d times more", after-before, more-asks)
		}
	}
	if g.ledger.Book[breaks.Open].Cause[breaks.Seal].Count == 0 {
		t.Error("a refused call is not booked as one")
	}
}

// A run ends although somebody still thinks about a seal.
func TestSealIsAskedAtTheEnd(t *testing.T) {
	asked := make(chan bool, 1)
	g := stopStart(t, sealLoop, func(c *Config) {
		c.MaySeal = func(_ int, over <-chan struct{}) error {
			select {
			case asked <- true:
			default: // the guest asks on until the stop meets it
			}
			<-over
			return errors.New("the run ends")
		}
	})
	<-asked
	if err := g.Stop("enough", 0); err != nil {
		t.Fatal(err)
	}
	g.ended = true
	select {
	case <-g.Done():
	case <-time.After(stopTime):
		t.Fatal("the vCPU's thread waits for an answer for ever")
	}
	if g.ledger.Seals != 0 {
		t.Errorf("sealed %d times", g.ledger.Seals)
	}
}
