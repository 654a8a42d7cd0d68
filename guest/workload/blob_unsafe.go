package workload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"
)

// labelLen is the length of LABEL's instruction, labelEnd the number of LABEL_END, and maxCode the most bytes
// that a program may have: one page of text.
const (
	labelLen = 7
	labelEnd = 0xff
	maxCode  = 4096
)

// callLen is the length of CALL_TO's instruction.
const callLen = 5

// labelled holds a program's code and where its labels stand, by number.
type labelled struct {
	code   []byte
	labels map[byte]int // offset of the first instruction after the label
}

// extract copies the program that starts at start out of our own text. The end is LABEL_END, which the
// program holds by construction; the text goes on for far more than maxCode bytes, so a missing one is an error.
func extract(start *byte) (labelled, error) {
	text := unsafe.Slice(start, maxCode)
	l := labelled{labels: map[byte]int{}}
	for at := 0; at+labelLen <= len(text); {
		if !bytes.Equal(text[at:at+3], []byte{0x0f, 0x1f, 0x80}) || !bytes.Equal(text[at+4:at+7], []byte{0x4c, 0x43, 0x7f}) {
			at++
			continue
		}
		n := text[at+3]
		at += labelLen
		if n == labelEnd {
			l.code = bytes.Clone(text[:at])
			return l, l.link()
		}
		if _, twice := l.labels[n]; twice {
			return labelled{}, fmt.Errorf("built-in program: label %d stands twice: this build of cloister is damaged", n)
		}
		l.labels[n] = at
	}
	return labelled{}, fmt.Errorf("built-in program: no end within %d bytes: this build of cloister is damaged", maxCode)
}

// link fills in the distances of the calls of CALL_TO.
func (l labelled) link() error {
	for at := 0; at+callLen <= len(l.code); at++ {
		if l.code[at] != 0xe8 || !bytes.Equal(l.code[at+2:at+callLen], []byte{0x43, 0x43, 0x7f}) {
			continue
		}
		to, ok := l.labels[l.code[at+1]]
		if !ok {
			return fmt.Errorf("built-in program: a call of label %d, which is missing: this build of cloister is damaged", l.code[at+1])
		}
		binary.LittleEndian.PutUint32(l.code[at+1:], uint32(to-at-callLen))
	}
	return nil
}
