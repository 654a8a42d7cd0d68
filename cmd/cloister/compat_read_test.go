package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// Reading a large file costs one exit per read, whatever its length: 1 GB by 1 MiB at a time leaves the guest once per MiB
// to read, and what is read arrives without a fault per page.
func TestLargeReadIsOneExit(t *testing.T) {
	b := newBox(t, testenv.Tool("busybox"))
	const mib, size = 1 << 20, 1024 // MiB
	big := filepath.Join(b.work, "big")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size * mib); err != nil { // a hole: the file takes no room
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("the end"), size*mib-7); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	const read, write = 0, 1
	for _, c := range []struct {
		name  string
		block int
		reads uint64 // that must be; the last one finds the end
	}{
		{"1 MiB", mib, size + 1},
		{"16 MiB", 16 * mib, size/16 + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			r, rep := b.reported("--ro", b.work, "busybox", "dd", "if="+big, "of=/dev/null", fmt.Sprint("bs=", c.block))
			if r.status != 0 {
				t.Fatalf("status %d, %s", r.status, tail(r.err))
			}
			var all uint64
			calls := map[int]uint64{}
			for _, s := range rep.VCPUs[0].Breaks.Syscalls {
				calls[s.Nr] += s.Count
				all += s.Count
			}
			t.Logf("%d reads, %d writes, %d calls, %d faults, %d breaks in all: %.2f for each MiB", calls[read], calls[write], all,
				count(rep, breaks.PageFault), rep.VCPUs[0].Breaks.Total, float64(rep.VCPUs[0].Breaks.Total)/size)
			if calls[read] != c.reads || calls[write] < c.reads-1 || calls[write] > c.reads+9 {
				t.Errorf("%d reads and %d writes of %d MiB, want %d of each, and a few writes for what dd says", calls[read], calls[write], size, c.reads)
			}
			// A C library's start and end make some dozens.
			if all > 2*c.reads+100 {
				t.Errorf("%d system calls for %d reads and as many writes", all, c.reads)
			}
			if n := count(rep, breaks.Syscall) + count(rep, breaks.End); n != all {
				t.Errorf("%d exits for %d system calls: a call must be one exit", n, all)
			}
			if n := rep.VCPUs[0].Breaks.Returns; n < all || n > all+20 {
				t.Errorf("KVM_RUN returned %d times for %d system calls", n, all)
			}
			// The buffer's pages are touched once, not at each read.
			if n, pages := count(rep, breaks.PageFault), uint64(c.block/4096); n > 4*pages+2000 {
				t.Errorf("%d page faults for a buffer of %d pages", n, pages)
			}
		})
	}
	b.t = t
	// It is the file's content that arrives.
	if r := b.do(process{argv: b.guest("busybox", "tail", "-c", "7", big)}); r.out != "the end" {
		t.Errorf("the end of the file is %q", r.out)
	}
}
