package linux

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The XSAVE area (Intel SDM vol. 1, 13.4) and what Linux adds to it in a signal frame (arch/x86/include/uapi/asm/sigcontext.h:
// struct _fpx_sw_bytes in the 48 bytes that FXSAVE leaves to software, and a magic word at the end).
const (
	fxSize       = 512
	xsaveHeader  = fxSize + 64
	xstateTail   = 4
	swBytes      = 464
	mxcsrAt      = 24
	mxcsrMaskAt  = 28
	xmmAt        = 160
	xmmEnd       = 416
	xstateBV     = 512
	xstateMagic1 = 0x46505853
	xstateMagic2 = 0x46505845
	featuresFXSR = 3 // x87 and SSE
	initialFCW   = 0x37f
	initialMXCSR = 0x1f80
	// mxcsrMask is the mask of a processor that does not say its own (Intel SDM vol. 1, 11.6.6).
	mxcsrMask = 0xffbf
)

var order = binary.LittleEndian

// initialXState is an area of n bytes in which every component is as after FNINIT, with which handlers begin. x87 and SSE are there, with the values that
// they have initially: without SSE in XSTATE_BV Linux 6.1 leaves MXCSR as it was (KVM_SET_XSAVE, copy_uabi_to_xstate).
func initialXState(n int) []byte {
	b := make([]byte, n)
	order.PutUint64(b[xstateBV:], featuresFXSR)
	order.PutUint16(b, initialFCW)
	order.PutUint32(b[mxcsrAt:], initialMXCSR)
	return b
}

// xstateFrame is t's area as a frame holds it. EINVAL when the CPU has none.
func (k *Kernel) xstateFrame(t *Task) ([]byte, unix.Errno) {
	area, errno := t.CPU.XState()
	if errno != 0 {
		return nil, errno
	}
	if len(area) < xsaveHeader {
		return nil, unix.EINVAL
	}
	b := append(append([]byte(nil), area...), 0, 0, 0, 0)
	n := len(area)
	bv := order.Uint64(b[xstateBV:]) | featuresFXSR
	order.PutUint64(b[xstateBV:], bv)
	sw := b[swBytes:fxSize]
	clear(sw)
	order.PutUint32(sw, xstateMagic1)
	order.PutUint32(sw[4:], uint32(n+xstateTail))
	order.PutUint64(sw[8:], k.cfg.XFeatures|bv)
	order.PutUint32(sw[16:], uint32(n))
	order.PutUint32(b[n:], xstateMagic2)
	return b, 0
}

// restoreXState loads the state of a frame, of which every byte may be forged, as Linux does (arch/x86/kernel/fpu/signal.c):
// without its magic words only what FXSAVE knows is loaded; what XRSTOR would refuse is refused.
func (k *Kernel) restoreXState(t *Task, at uint64) bool {
	now, errno := t.CPU.XState()
	if errno != 0 || len(now) < xsaveHeader {
		return false
	}
	n := len(now)
	allowed := order.Uint32(now[mxcsrMaskAt:])
	if allowed == 0 {
		allowed = mxcsrMask
	}
	b := initialXState(n)
	if at == 0 {
		return t.CPU.SetXState(b) == 0
	}
	var fx [fxSize]byte
	if k.copyIn(at, fx[:]) != 0 {
		return false
	}
	size, features := uint64(order.Uint32(fx[swBytes+16:])), order.Uint64(fx[swBytes+8:])
	full := order.Uint32(fx[swBytes:]) == xstateMagic1 && size >= xsaveHeader && size <= uint64(n) && size <= uint64(order.Uint32(fx[swBytes+4:]))
	if full {
		magic, errno := k.load32(at + size)
		if errno != 0 {
			return false
		}
		full = magic == xstateMagic2
	}
	bv, align := uint64(featuresFXSR), uint64(16)
	if full {
		align = 64
		if k.copyIn(at, b[:size]) != 0 {
			return false
		}
		header := b[xstateBV:xsaveHeader]
		bv = order.Uint64(header)
		if order.Uint64(header[8:]) != 0 || order.Uint64(header[16:]) != 0 || k.cfg.XFeatures != 0 && bv&^k.cfg.XFeatures != 0 {
			return false
		}
		clear(header[24:]) // the processor does not look at them, KVM does
		bv &= features
		if bv&2 == 0 {
			clear(b[xmmAt:xmmEnd])
			if features&(2|4) != 0 {
				bv |= 2 // MXCSR is loaded although the registers are not
			} else {
				order.PutUint32(b[mxcsrAt:], initialMXCSR)
			}
		}
	} else {
		copy(b, fx[:])
	}
	if at%align != 0 || order.Uint32(b[mxcsrAt:])&^allowed != 0 {
		return false
	}
	clear(b[swBytes:fxSize])
	order.PutUint64(b[xstateBV:], bv)
	return t.CPU.SetXState(b) == 0
}
