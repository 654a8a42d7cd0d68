package workload

import (
	"bytes"
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
			return l, nil
		}
		if _, twice := l.labels[n]; twice {
			return labelled{}, fmt.Errorf("built-in program: label %d stands twice: this build of cloister is damaged", n)
		}
		l.labels[n] = at
	}
	return labelled{}, fmt.Errorf("built-in program: no end within %d bytes: this build of cloister is damaged", maxCode)
}
