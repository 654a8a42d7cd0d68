package elf

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"
	"syscall"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Auxiliary vector types (include/uapi/linux/auxvec.h, arch/x86/include/uapi/asm/auxvec.h).
const (
	atNull        = 0
	atPHDR        = 3
	atPHENT       = 4
	atPHNUM       = 5
	atPAGESZ      = 6
	atBASE        = 7
	atFLAGS       = 8
	atENTRY       = 9
	atUID         = 11
	atEUID        = 12
	atGID         = 13
	atEGID        = 14
	atPLATFORM    = 15
	atHWCAP       = 16
	atCLKTCK      = 17
	atSECURE      = 23
	atRANDOM      = 25
	atHWCAP2      = 26
	atEXECFN      = 31
	atSYSINFOEHDR = 33
	atMINSIGSTKSZ = 51
)

const (
	// MaxArg bounds one argument or environment string with its NUL, in bytes (MAX_ARG_STRLEN in
	// include/uapi/linux/binfmts.h).
	MaxArg = 131072
	// argMin and argMax bound all of them together (bprm_stack_limits in fs/exec.c): a quarter of the
	// stack, at least ARG_MAX and at most three quarters of _STK_LIM.
	argMin = 131072
	argMax = 6 << 20

	userHZ = 100 // USER_HZ: what times(2) counts in, whatever HZ the kernel has
)

// Start is what a program finds on its stack beside what its file says.
type Start struct {
	Argv   []string // no NUL bytes; an empty list becomes one empty argument, as on Linux since 5.18
	Envp   []string
	ExecFn string // AT_EXECFN, the name given to execve
	Bias   uint64 // from Image.Bias
	Random [16]byte

	UID, EUID, GID, EGID uint32

	HWCap       uint64 // AT_HWCAP: CPUID leaf 1 EDX
	HWCap2      uint64 // AT_HWCAP2: bit 1 says that FSGSBASE works
	MinSigStack uint64 // AT_MINSIGSTKSZ in bytes; left out when 0
	SysinfoEHDR uint64 // AT_SYSINFO_EHDR, where the vDSO image is mapped; left out when 0

	StackSize uint64 // bytes below top that are mapped; bounds the strings
}

// Stack writes the first stack of the program, below top, by one WriteAt whose offset is the guest
// address, and gives the RSP to start with: a multiple of 16, where argc lies (System V AMD64 ABI
// 3.4.1). The layout is that of create_elf_tables in fs/binfmt_elf.c, except that nothing is
// randomised but AT_RANDOM. Arguments that do not fit give an error that wraps syscall.E2BIG; a
// string with a NUL byte gives syscall.EINVAL.
func (im *Image) Stack(s Start, top uint64, w io.WriterAt) (rsp uint64, err error) {
	if top%16 != 0 || top > math.MaxInt64 || s.StackSize > top {
		return 0, fmt.Errorf("lay out stack: a top of %#x with %d bytes below it; pass a multiple of 16 and a size that fits", top, s.StackSize)
	}
	argv := s.Argv
	if len(argv) == 0 {
		argv = []string{""}
	}
	total, err := stringBytes(argv, s)
	if err != nil {
		return 0, err
	}

	// From the top: 8 zero bytes, AT_EXECFN, environment, arguments, platform, random bytes.
	strs := top - 8 - total
	platform := strs&^15 - uint64(len("x86_64\x00"))
	random := platform - 16
	execFn := top - 8 - uint64(len(s.ExecFn)+1)

	vec := im.auxv(s, random, platform, execFn)
	words := 1 + len(argv) + 1 + len(s.Envp) + 1
	rsp = (random - uint64(8*len(vec)) - uint64(8*words)) &^ 15
	if top-rsp > s.StackSize {
		return 0, fmt.Errorf("lay out stack: %d bytes for a stack of %d: %w; give the program a larger stack", top-rsp, s.StackSize, syscall.E2BIG)
	}

	buf := make([]byte, top-rsp)
	le := binary.LittleEndian
	at := 0
	word := func(v uint64) { le.PutUint64(buf[at:], v); at += 8 }
	next := strs
	put := func(list []string) {
		for _, v := range list {
			word(next)
			copy(buf[next-rsp:], v)
			next += uint64(len(v) + 1)
		}
		word(0)
	}
	word(uint64(len(argv)))
	put(argv)
	put(s.Envp)
	for _, v := range vec {
		word(v)
	}
	copy(buf[next-rsp:], s.ExecFn)
	copy(buf[platform-rsp:], "x86_64")
	copy(buf[random-rsp:], s.Random[:])
	n, err := w.WriteAt(buf, int64(rsp))
	if err == nil && n != len(buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return 0, fmt.Errorf("write stack of %d bytes at %#x: %w", len(buf), rsp, err)
	}
	return rsp, nil
}

// stringBytes gives the bytes of all strings with their NULs, after checking Linux's limits.
func stringBytes(argv []string, s Start) (uint64, error) {
	limit := min(max(s.StackSize/4, argMin), argMax)
	total, pointers := uint64(0), uint64(8*(len(argv)+len(s.Envp)))
	check := func(kind string, i int, v string) error {
		if len(v) >= MaxArg {
			return fmt.Errorf("lay out stack: %s %d has %d bytes: %w; pass at most %d", kind, i, len(v), syscall.E2BIG, MaxArg-1)
		}
		if strings.IndexByte(v, 0) >= 0 {
			return fmt.Errorf("lay out stack: %s %d holds a NUL byte: %w; remove it", kind, i, syscall.EINVAL)
		}
		total += uint64(len(v) + 1)
		return nil
	}
	if err := check("program name", 0, s.ExecFn); err != nil {
		return 0, err
	}
	for i, v := range argv {
		if err := check("argument", i, v); err != nil {
			return 0, err
		}
	}
	for i, v := range s.Envp {
		if err := check("environment string", i, v); err != nil {
			return 0, err
		}
	}
	if total+pointers > limit {
		return 0, fmt.Errorf("lay out stack: arguments and environment take %d bytes: %w; pass at most %d", total+pointers, syscall.E2BIG, limit)
	}
	return total, nil
}

// auxv gives the auxiliary vector in Linux's order (ARCH_DLINFO of x86 first).
func (im *Image) auxv(s Start, random, platform, execFn uint64) []uint64 {
	var v []uint64
	add := func(typ, val uint64) { v = append(v, typ, val) }
	if s.SysinfoEHDR != 0 {
		add(atSYSINFOEHDR, s.SysinfoEHDR)
	}
	if s.MinSigStack != 0 {
		add(atMINSIGSTKSZ, s.MinSigStack)
	}
	add(atHWCAP, s.HWCap)
	add(atPAGESZ, abi.Page)
	add(atCLKTCK, userHZ)
	phdr := uint64(0)
	if im.Phdr.Loaded {
		phdr = im.Phdr.VAddr + s.Bias
	}
	add(atPHDR, phdr)
	add(atPHENT, uint64(im.Phdr.EntSize))
	add(atPHNUM, uint64(im.Phdr.Num))
	add(atBASE, 0)
	add(atFLAGS, 0)
	add(atENTRY, im.Entry+s.Bias)
	add(atUID, uint64(s.UID))
	add(atEUID, uint64(s.EUID))
	add(atGID, uint64(s.GID))
	add(atEGID, uint64(s.EGID))
	secure := uint64(0)
	if s.UID != s.EUID || s.GID != s.EGID {
		secure = 1
	}
	add(atSECURE, secure)
	add(atRANDOM, random)
	add(atHWCAP2, s.HWCap2)
	add(atEXECFN, execFn)
	add(atPLATFORM, platform)
	add(atNull, 0)
	return v
}
