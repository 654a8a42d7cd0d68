package vdso

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// code is the machine code of the image's functions (code_amd64.s); it is copied, never called.
func code()

var _ = code // only the assembler refers to it

// codeStart gives the address of code's first byte; a Go func value would give a wrapper's.
func codeStart() unsafe.Pointer

// maxCode bounds the search for the last mark, in bytes. Text of the Go runtime follows code, so
// reading that far is safe.
const maxCode = 2048

// pageMark is the displacement in code_amd64.s that stands for the distance to the data page.
const pageMark = 0x5AFEDA7A

// codeBytes gives a copy of the machine code and where each function begins in it.
func codeBytes() (text []byte, entry []int, err error) {
	all := unsafe.Slice((*byte)(codeStart()), maxCode)
	for i := 0; i+8 <= len(all); i++ {
		if binary.LittleEndian.Uint32(all[i:]) != 0xCCCCCCCC || binary.LittleEndian.Uint32(all[i+4:]) != 0xCCCCCC00+uint32(len(entry)) {
			continue
		}
		if len(entry) == len(names) {
			return append([]byte(nil), all[:i]...), entry, nil
		}
		entry = append(entry, i+8)
		i += 7
	}
	return nil, nil, fmt.Errorf("build vDSO: %d of %d functions found in its code; build Cloister with an unmodified assembler", len(entry), len(names))
}

// asPage gives the words of the data page at the start of b.
func asPage(b []byte) (*dataPage, error) {
	if len(b) < PageSize || uintptr(unsafe.Pointer(&b[0]))%8 != 0 {
		return nil, fmt.Errorf("vDSO data page: %d bytes; pass %d, aligned", len(b), PageSize)
	}
	return (*dataPage)(unsafe.Pointer(&b[0])), nil
}
