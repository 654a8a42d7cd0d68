package symbol

import "encoding/binary"

// decoder takes values off the front of b. After the first one that is cut short bad is set and every
// further value is 0, so that callers check once, at the end.
type decoder struct {
	b   []byte
	at  uint64 // link-time address of b[0], for pointers relative to their own place
	bad bool
}

func (d *decoder) fail() {
	d.b, d.bad = nil, true
}

// uint takes a little-endian number of n bytes, n in 1, 2, 4, 8.
func (d *decoder) uint(n int) uint64 {
	if len(d.b) < n {
		d.fail()
		return 0
	}
	var w [8]byte
	copy(w[:], d.b[:n])
	d.b, d.at = d.b[n:], d.at+uint64(n)
	return binary.LittleEndian.Uint64(w[:])
}

func (d *decoder) u8() byte { return byte(d.uint(1)) }

// sint is uint with the sign extended.
func (d *decoder) sint(n int) int64 {
	shift := 64 - 8*n
	return int64(d.uint(n)) << shift >> shift
}

func (d *decoder) skip(n uint64) {
	if n > uint64(len(d.b)) {
		d.fail()
		return
	}
	d.b, d.at = d.b[n:], d.at+n
}

// block takes a ULEB128 length and that many bytes.
func (d *decoder) block() []byte {
	n := d.uleb()
	b := d.b
	if d.skip(n); d.bad {
		return nil
	}
	return b[:n]
}

// uleb takes a ULEB128 number (DWARF 5 section 7.6); bits above 64 are dropped.
func (d *decoder) uleb() uint64 {
	v, _, _ := d.leb()
	return v
}

func (d *decoder) sleb() int64 {
	v, shift, last := d.leb()
	if shift < 64 && last&0x40 != 0 {
		v |= ^uint64(0) << shift
	}
	return int64(v)
}

func (d *decoder) leb() (v uint64, shift uint, last byte) {
	for {
		last = d.u8()
		if shift < 64 {
			v |= uint64(last&0x7f) << shift
		}
		shift += 7
		if last&0x80 == 0 {
			return v, shift, last
		}
	}
}

// pointer takes an address in the encoding enc (LSB, "DWARF Extensions", DW_EH_PE_*): absolute or
// relative to its own place, which is all that a static program uses.
func (d *decoder) pointer(enc byte) uint64 {
	var base, v uint64
	switch enc & 0xf0 {
	case 0x00:
	case 0x10:
		base = d.at
	default:
		d.fail()
		return 0
	}
	switch enc & 0x0f {
	case 0x00, 0x04, 0x0c:
		v = d.uint(8)
	case 0x01:
		v = d.uleb()
	case 0x02:
		v = d.uint(2)
	case 0x03:
		v = d.uint(4)
	case 0x09:
		v = uint64(d.sleb())
	case 0x0a:
		v = uint64(d.sint(2))
	case 0x0b:
		v = uint64(d.sint(4))
	default:
		d.fail()
	}
	return base + v
}
