package audit

import (
	"bytes"
	"testing"
)

// naive is Verify without an idea of why: whole logs only.
func naive(text []byte) (head Hash, ok bool) {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if len(lines[len(lines)-1]) != 0 {
		return head, false // torn
	}
	lines = lines[:len(lines)-1]
	next, torn := Hash{}, false
	for _, b := range lines {
		b = b[:len(b)-1]
		l, err := parse(b)
		switch {
		case err == nil && l.Prev == next:
			next, head, torn = l.Hash, l.Hash, false
		case err == errForm && !torn:
			next, torn = chainTorn(next, b), true
		default:
			return head, false
		}
	}
	return head, !torn
}

// Whatever is fed to it, it ends, and it is of the same mind as the naive one; a log that it takes can be appended to,
// and one that it refuses for anything but a torn end cannot lose that fault by an append.
func FuzzVerify(f *testing.F) {
	_, l, _ := log(f, 4)
	f.Add([]byte(l[0]+l[1]), uint(0), uint(0), byte(0))
	f.Add([]byte(l[0]+l[1]+l[2]+l[3]), uint(700), uint(3), byte(1))
	f.Add([]byte(l[0]+l[1][:70]), uint(1), uint(2), byte(2))
	f.Add([]byte(l[1]+l[0]), uint(5), uint(1), byte(3))
	f.Add([]byte("\n\n"), uint(0), uint(0), byte(4))
	f.Fuzz(func(t *testing.T, text []byte, at, with uint, how byte) {
		if len(text) > 1<<20 {
			return
		}
		s, err := Verify(bytes.NewReader(text), Hash{}, nil)
		head, ok := naive(text)
		if ok != (err == nil) || ok && head != s.Head {
			t.Fatalf("%v, %s; the naive one says %v, %s", err, s.Head, ok, head)
		}
		// A good log with one change is good no more, or has another head.
		good := []byte(l[0] + l[1] + l[2] + l[3])
		if bad := tamper(good, l, at, with, how); !bytes.Equal(bad, good) {
			u, err := Verify(bytes.NewReader(bad), Hash{}, nil)
			whole, _ := Verify(bytes.NewReader(good), Hash{}, nil)
			if err == nil && u.Head == whole.Head {
				t.Fatalf("tampered unseen (%d, %d, %d):\n%s", at, with, how, bad)
			}
			if _, err := Verify(bytes.NewReader(bad), whole.Head, nil); err == nil {
				t.Fatalf("tampered unseen by who has the head (%d, %d, %d):\n%s", at, with, how, bad)
			}
		}
	})
}

// tamper changes a byte, removes, doubles or swaps lines, or cuts.
func tamper(good []byte, l []string, at, with uint, how byte) []byte {
	bad := bytes.Clone(good)
	i, j := int(at%uint(len(l))), int(with%uint(len(l)))
	begin := func(k int) (n int) {
		for _, s := range l[:k] {
			n += len(s)
		}
		return n
	}
	switch how % 6 {
	case 0:
		bad[at%uint(len(bad))] ^= byte(with)
	case 1: // remove line i
		bad = append(bad[:begin(i)], good[begin(i+1):]...)
	case 2: // line i once more, behind line j
		bad = append(append(bad[:begin(j+1)], l[i]...), good[begin(j+1):]...)
	case 3: // swap
		m := append([]string{}, l...)
		m[i], m[j] = m[j], m[i]
		bad = nil
		for _, s := range m {
			bad = append(bad, s...)
		}
	case 4: // cut off the end
		bad = bad[:at%uint(len(bad))]
	case 5: // insert a byte
		k := at % uint(len(bad))
		bad = append(append(append([]byte{}, good[:k]...), byte(with)), good[k:]...)
	}
	return bad
}
