package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// samples are quantities of one kind: cycles, nanoseconds.
type samples []float64

// quantile is the smallest sample that at least a share q of all do not exceed; 0 without samples.
func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	c := slices.Sorted(slices.Values(s))
	i := int(q*float64(len(c))+0.999999) - 1
	return c[min(max(i, 0), len(c)-1)]
}

func writeSamples(w io.Writer, list []uint64) error {
	b := make([]byte, 0, 8*len(list))
	for _, v := range list {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	_, err := w.Write(b)
	return err
}

// words decodes 8-byte little-endian numbers.
func words(b []byte) ([]uint64, error) {
	if len(b)%8 != 0 {
		return nil, fmt.Errorf("%d bytes of samples: not a multiple of 8", len(b))
	}
	out := make([]uint64, len(b)/8)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return out, nil
}

// decode is words as samples. A sample of 2^63 or more is a negative time: clocks of two cores disagree.
func decode(b []byte) (samples, error) {
	w, err := words(b)
	if err != nil {
		return nil, err
	}
	out := make(samples, len(w))
	for i, v := range w {
		out[i] = float64(max(int64(v), 0))
	}
	return out, nil
}
