package symbol

import (
	"bytes"
	"debug/dwarf"
)

// This file refuses DWARF that debug/dwarf would take at its word at unbounded cost:
//   - it copies each string anew: many references to one huge string;
//   - it reads an abbreviation table per unit that names one: many units, overlapping tables;
//   - it allocates as many file names as a line table claims to have (DWARF 5 section 6.2.4);
//   - it grows the file list while it executes a line program (DW_LNE_define_file).

const (
	maxAttrs = 256   // of one abbreviation
	maxFiles = 16384 // file names and directories of one line table, each
)

// stringsBounded reports that no NUL-terminated string in b is longer than limit.
func stringsBounded(b []byte, limit int) bool {
	for len(b) > 0 {
		i := bytes.IndexByte(b[:min(len(b), limit+1)], 0)
		if i < 0 {
			return len(b) <= limit
		}
		b = b[i+1:]
	}
	return true
}

// vetUnits walks the headers of .debug_info (DWARF 5 section 7.5.1) and returns the offset of each
// compilation unit's first entry.
func vetUnits(info, abbrev []byte) (offs []dwarf.Offset, ok bool) {
	budget := int64(2*len(abbrev) + 1<<16)
	seen := map[uint64]bool{}
	for pos := 0; pos < len(info); {
		d := decoder{b: info[pos:]}
		n := d.uint(4)
		if n >= 0xfffffff0 || n > uint64(len(d.b)) { // 64-bit DWARF is for more than 4 GiB of it
			return nil, false
		}
		end := pos + 4 + int(n)
		version, kind := d.uint(2), byte(dwUTCompile)
		var table uint64
		if version >= 5 {
			kind = d.u8()
			d.u8()
			table = d.uint(4)
		} else {
			table = d.uint(4)
			d.u8()
		}
		if d.bad || version < 2 || version > 5 || table > uint64(len(abbrev)) {
			return nil, false
		}
		if kind == dwUTCompile && end > len(info)-len(d.b) {
			offs = append(offs, dwarf.Offset(len(info)-len(d.b)))
		}
		if !seen[table] {
			seen[table] = true
			if budget -= vetAbbrevs(abbrev[table:]); budget < 0 {
				return nil, false
			}
		}
		pos = end
	}
	return offs, true
}

const dwUTCompile = 1 // DW_UT_compile

// vetAbbrevs returns the length of one abbreviation table (DWARF 5 section 7.5.3), a huge one when it
// is not to be read.
func vetAbbrevs(b []byte) int64 {
	const refuse = 1 << 40
	d := decoder{b: b}
	for d.uleb() != 0 {
		d.uleb()
		d.u8()
		for n := 0; ; n++ {
			attr, form := d.uleb(), d.uleb()
			if form == 0x21 { // DW_FORM_implicit_const
				d.sleb()
			}
			if attr == 0 && form == 0 {
				break
			}
			if n == maxAttrs {
				return refuse
			}
		}
	}
	if d.bad {
		return refuse
	}
	return int64(len(b)-len(d.b)) + 16
}

// vetLines walks one line table's header and program (DWARF 5 section 6.2.4).
func vetLines(b []byte, off int64) bool {
	if off < 0 || off >= int64(len(b)) {
		return false
	}
	d := decoder{b: b[off:]}
	n := d.uint(4)
	if n >= 0xfffffff0 || n > uint64(len(d.b)) {
		return false
	}
	d.b = d.b[:n]
	version := d.uint(2)
	if version >= 5 {
		d.skip(2)
	}
	n = d.uint(4)
	if d.bad || version < 2 || version > 5 || n > uint64(len(d.b)) {
		return false
	}
	program := decoder{b: d.b[n:]}
	d.b = d.b[:n]
	if version >= 4 {
		d.skip(1)
	}
	d.skip(4)
	lens := make([]uint64, max(1, int(d.u8())))
	for i := range lens[1:] {
		lens[i+1] = uint64(d.u8())
	}
	if version >= 5 {
		// Twice: the directories, then the files.
		for range 2 {
			if !vetNames5(&d) {
				return false
			}
		}
	} else if !vetNames(&d) {
		return false
	}
	return !d.bad && vetProgram(&program, lens)
}

// path takes a NUL-terminated string of a line table.
func (d *decoder) path() (n int) {
	n = bytes.IndexByte(d.b[:min(len(d.b), maxPath+1)], 0)
	if n < 0 {
		d.fail()
		return 0
	}
	d.skip(uint64(n + 1))
	return n
}

// vetNames passes over the directories and files of versions 2 to 4.
func vetNames(d *decoder) bool {
	for n := 0; d.path() != 0; n++ {
		if n == maxFiles {
			return false
		}
	}
	for n := 0; d.path() != 0; n++ {
		if n == maxFiles {
			return false
		}
		d.uleb()
		d.uleb()
		d.uleb()
	}
	return true
}

// vetNames5 passes over the directories, or the files, of version 5.
func vetNames5(d *decoder) bool {
	forms := make([]uint64, d.u8())
	for i := range forms {
		d.uleb()
		forms[i] = d.uleb()
	}
	n := d.uleb()
	if n > maxFiles || n > 0 && len(forms) == 0 {
		return false
	}
	for range n {
		for _, form := range forms {
			switch form {
			case 0x08: // DW_FORM_string
				d.path()
			case 0x1f: // DW_FORM_line_strp
				d.skip(4)
			case 0x0b: // DW_FORM_data1
				d.skip(1)
			case 0x05: // DW_FORM_data2
				d.skip(2)
			case 0x06: // DW_FORM_data4
				d.skip(4)
			case 0x07: // DW_FORM_data8
				d.skip(8)
			case 0x0f: // DW_FORM_udata
				d.uleb()
			case 0x1e: // DW_FORM_data16
				d.skip(16)
			case 0x09: // DW_FORM_block
				d.block()
			default:
				return false
			}
		}
		if d.bad {
			return false
		}
	}
	return true
}

// vetProgram looks for DW_LNE_define_file, which no compiler of this century emits.
func vetProgram(d *decoder, lens []uint64) bool {
	for len(d.b) > 0 {
		op := d.u8()
		switch {
		case op == 0:
			n := d.uleb()
			if n == 0 || len(d.b) == 0 || d.b[0] == 3 {
				return false
			}
			d.skip(n)
		case int(op) >= len(lens): // special: no operands
		case op == 9: // DW_LNS_fixed_advance_pc
			d.skip(2)
		default:
			for range lens[op] {
				d.uleb()
			}
		}
	}
	return !d.bad
}
