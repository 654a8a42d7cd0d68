package elf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// memory is guest memory of one write.
type memory struct {
	base uint64
	data []byte
	err  error
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.base, m.data = uint64(off), append([]byte(nil), b...)
	return len(b), m.err
}

func (m *memory) u64(a uint64) uint64 { return binary.LittleEndian.Uint64(m.data[a-m.base:]) }

func (m *memory) str(a uint64) string {
	s, _, _ := strings.Cut(string(m.data[a-m.base:]), "\x00")
	return s
}

// decode walks a stack as crt0 does.
func decode(m *memory, sp uint64) (argv, envp []string, auxv [][2]uint64) {
	argc := m.u64(sp)
	for sp += 8; m.u64(sp) != 0; sp += 8 {
		argv = append(argv, m.str(m.u64(sp)))
	}
	if uint64(len(argv)) != argc {
		return nil, nil, nil
	}
	for sp += 8; m.u64(sp) != 0; sp += 8 {
		envp = append(envp, m.str(m.u64(sp)))
	}
	for sp += 8; ; sp += 16 {
		auxv = append(auxv, [2]uint64{m.u64(sp), m.u64(sp + 8)})
		if m.u64(sp) == atNull {
			return argv, envp, auxv
		}
	}
}

func start() Start {
	s := Start{
		Argv: []string{"prog", "", "-x"}, Envp: []string{"A=1", "EMPTY="}, ExecFn: "./prog",
		UID: 1, EUID: 2, GID: 3, EGID: 3, HWCap: 0xbfebfbff, HWCap2: 2, MinSigStack: 3616,
		SysinfoEHDR: abi.VDSOBase + 0x4000, StackSize: 8 << 20,
	}
	copy(s.Random[:], "0123456789abcdef")
	return s
}

func TestStack(t *testing.T) {
	im, err := soundPIE().load()
	if err != nil {
		t.Fatal(err)
	}
	// Every total length modulo 16, so that alignment is tested in each position.
	for pad := range 33 {
		for extra := range 3 {
			s := start()
			s.Bias = abi.PIEBase
			s.Argv[2] = strings.Repeat("x", pad)
			for range extra {
				s.Envp = append(s.Envp, "B=2")
			}
			m := &memory{}
			sp, err := im.Stack(s, abi.StackTop, m)
			if err != nil {
				t.Fatal(err)
			}
			if sp%16 != 0 || sp != m.base || m.base+uint64(len(m.data)) != abi.StackTop {
				t.Fatalf("rsp %#x, %d bytes at %#x", sp, len(m.data), m.base)
			}
			argv, envp, auxv := decode(m, sp)
			if !slices.Equal(argv, s.Argv) || !slices.Equal(envp, s.Envp) {
				t.Fatalf("argv %q envp %q", argv, envp)
			}
			aux := map[uint64]uint64{}
			for _, a := range auxv {
				aux[a[0]] = a[1]
			}
			for typ, want := range map[uint64]uint64{
				atPHDR: abi.PIEBase + 64, atPHENT: 56, atPHNUM: 3, atPAGESZ: 4096, atBASE: 0, atFLAGS: 0,
				atENTRY: abi.PIEBase + 0x1000, atUID: 1, atEUID: 2, atGID: 3, atEGID: 3, atSECURE: 1,
				atCLKTCK: 100, atHWCAP: 0xbfebfbff, atHWCAP2: 2, atSYSINFOEHDR: s.SysinfoEHDR, atMINSIGSTKSZ: 3616,
			} {
				if got, ok := aux[typ]; !ok || got != want {
					t.Errorf("auxv %d: %#x (%v), want %#x", typ, got, ok, want)
				}
			}
			if m.str(aux[atPLATFORM]) != "x86_64" || m.str(aux[atEXECFN]) != "./prog" ||
				!bytes.Equal(m.data[aux[atRANDOM]-m.base:][:16], s.Random[:]) {
				t.Errorf("platform, execfn or random bytes wrong")
			}
			if m.u64(abi.StackTop-8) != 0 || aux[atEXECFN]+uint64(len("./prog\x00"))+8 != abi.StackTop {
				t.Errorf("the file name does not end 8 bytes below the top")
			}
		}
	}
}

// TestStackMatchesKernel compares order and set of the auxiliary vector with what this machine's
// kernel gave the test itself.
func TestStackMatchesKernel(t *testing.T) {
	raw, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		t.Fatal(err)
	}
	// Newer or older than what is promised here: rseq (6.3), HWCAP3 and 4 (6.9), MINSIGSTKSZ (5.14).
	optional := []uint64{27, 28, 29, 30, atMINSIGSTKSZ, atSYSINFOEHDR}
	types := func(all []uint64) (kept []uint64) {
		for _, v := range all {
			if !slices.Contains(optional, v) {
				kept = append(kept, v)
			}
		}
		return kept
	}
	var kernel, ours []uint64
	for ; len(raw) >= 16; raw = raw[16:] {
		kernel = append(kernel, binary.LittleEndian.Uint64(raw))
	}
	im, err := sound().load()
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{}
	sp, err := im.Stack(start(), abi.StackTop, m)
	if err != nil {
		t.Fatal(err)
	}
	_, _, auxv := decode(m, sp)
	for _, a := range auxv {
		ours = append(ours, a[0])
	}
	if !slices.Equal(types(ours), types(kernel)) {
		t.Errorf("order of the auxiliary vector:\nours   %v\nkernel %v", types(ours), types(kernel))
	}
}

func TestStackLimits(t *testing.T) {
	im, err := sound().load()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Start)
		want   error
	}{
		{"fits", func(s *Start) { s.Argv = []string{strings.Repeat("a", MaxArg-1)} }, nil},
		{"one argument", func(s *Start) { s.Argv = []string{strings.Repeat("a", MaxArg)} }, syscall.E2BIG},
		{"one variable", func(s *Start) { s.Envp = []string{strings.Repeat("a", MaxArg)} }, syscall.E2BIG},
		{"all", func(s *Start) { s.Argv = slices.Repeat([]string{strings.Repeat("a", 99999)}, 21) }, syscall.E2BIG},
		{"pointers count", func(s *Start) { s.Argv = slices.Repeat([]string{""}, 233018) }, syscall.E2BIG},
		{"just fits", func(s *Start) { s.Argv = slices.Repeat([]string{""}, 233010) }, nil},
		{"never above 6 MiB", func(s *Start) {
			s.StackSize = 4 << 30
			s.Argv = slices.Repeat([]string{strings.Repeat("a", 99999)}, 63)
		}, syscall.E2BIG},
		{"tiny stack", func(s *Start) { s.StackSize = 400 }, syscall.E2BIG},
		{"no stack", func(s *Start) { s.StackSize = 0 }, syscall.E2BIG},
		{"NUL", func(s *Start) { s.Argv = []string{"a\x00b"} }, syscall.EINVAL},
		{"NUL in the name", func(s *Start) { s.ExecFn = "\x00" }, syscall.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start()
			c.change(&s)
			m := &memory{}
			_, err := im.Stack(s, abi.StackTop, m)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err != nil && (m.data != nil || strings.Contains(err.Error(), "\n")) {
				t.Errorf("wrote, or error of several lines: %v", err)
			}
		})
	}
	s := start()
	s.Argv = nil
	m := &memory{}
	if sp, err := im.Stack(s, abi.StackTop, m); err != nil || m.u64(sp) != 1 || m.str(m.u64(sp+8)) != "" {
		t.Errorf("no arguments: %v", err)
	}
	for _, top := range []uint64{8, abi.StackTop + 1, 1 << 63, 4096} {
		if _, err := im.Stack(start(), top, m); err == nil {
			t.Errorf("top %#x accepted", top)
		}
	}
	if _, err := im.Stack(start(), abi.StackTop, &memory{err: syscall.EFAULT}); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("write error lost: %v", err)
	}
}
