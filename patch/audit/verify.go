package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Kind says what became of a line that is wrong.
type Kind string

// Kinds of a Fault.
const (
	Changed   Kind = "changed"   // its bytes are not those that were written
	Removed   Kind = "removed"   // the lines before it are missing
	Reordered Kind = "reordered" // it does not belong here, but it belongs to this log
	Torn      Kind = "torn"      // its end is missing: a crash, or somebody cut it
	Cut       Kind = "cut"       // the log ends before the hash that was asked for
)

// Fault is the first line of a log that is wrong. It is an error.
type Fault struct {
	Line int // from 1; of a log that was cut: the first that is missing
	Kind Kind
	Why  string // one line
}

func (f *Fault) Error() string { return fmt.Sprintf("line %d: %s: %s", f.Line, f.Kind, f.Why) }

// Summary is what a log says as a whole.
type Summary struct {
	Lines  int   // with those in Torn
	Torn   []int // lines that a crash tore and that a later append has chained in: no fault
	Head   Hash  // of the last line; zero: there is none
	HeadAt int   // line that has the hash which was asked for
}

// Verify reads a log from its first line and stops at the first that is wrong, which is a *Fault; any other error is the
// reader's. head, if it is not zero, must be the hash of one of its lines. each, if it is not nil, is given every line that
// is right.
func Verify(r io.Reader, head Hash, each func(Line)) (Summary, error) {
	v := &verifier{in: bufio.NewReaderSize(r, 64<<10), head: head, each: each}
	f, err := v.run()
	if err == nil && f != nil {
		err = f
	}
	return v.Summary, err
}

type verifier struct {
	Summary
	in   *bufio.Reader
	head Hash
	each func(Line)

	next   Hash   // what the next line must be chained to
	hashes []Hash // of all lines, at line-1; what stands for it of a torn one
	last   number // of the line before
	torn   bool   // the line before is none, and the next one must say that it was torn
}

// number places a record in its run.
type number struct {
	run string
	n   uint64
}

func (v *verifier) run() (*Fault, error) {
	for {
		b, ended, err := v.line()
		if errors.Is(err, errLong) {
			v.Lines++
			return v.bad(err), nil
		}
		if err != nil {
			return nil, err
		}
		if len(b) == 0 && !ended {
			return v.end(), nil
		}
		v.Lines++
		l, err := parse(b)
		l.Number = v.Lines
		switch {
		case !ended:
			return v.unended(err), nil
		case err == nil:
			if f, err := v.good(l); f != nil || err != nil {
				return f, err
			}
		case v.torn || !errors.Is(err, errForm):
			return v.bad(err), nil
		default:
			v.torn = true
			v.next = chainTorn(v.next, b)
			v.hashes = append(v.hashes, v.next)
		}
	}
}

// good takes a line that is right in itself.
func (v *verifier) good(l Line) (*Fault, error) {
	now := place(&l)
	if l.Prev != v.next {
		if v.torn {
			return v.bad(errForm), nil
		}
		return v.misplaced(l, now)
	}
	if v.torn {
		v.Torn = append(v.Torn, v.Lines-1)
		v.torn = false
	}
	v.next, v.Head, v.last = l.Hash, l.Hash, now
	v.hashes = append(v.hashes, l.Hash)
	if l.Hash == v.head {
		v.HeadAt = v.Lines
	}
	if v.each != nil {
		v.each(l)
	}
	return nil, nil
}

func place(l *Line) number {
	r, err := l.Decode()
	if err != nil {
		return number{} // a record of another form: it is chained all the same
	}
	return number{r.VM + " " + r.Started, r.Number}
}

// bad is about the first line that is not right in itself: this one, or the one before that nobody says was torn.
func (v *verifier) bad(err error) *Fault {
	if v.torn {
		return &Fault{len(v.hashes), Changed, errForm.Error()}
	}
	return &Fault{v.Lines, Changed, err.Error()}
}

// unended is about a last line without its end.
func (v *verifier) unended(err error) *Fault {
	if v.torn {
		return v.bad(err)
	}
	why := "it has no end: a crash while it was written, or it was cut; the next patch keeps it and goes on behind it"
	if err == nil {
		why = "only its line end is missing; the next patch adds it"
	}
	return &Fault{v.Lines, Torn, why}
}

func (v *verifier) end() *Fault {
	switch {
	case v.torn:
		return v.bad(errForm)
	case v.head != Hash{} && v.HeadAt == 0:
		return &Fault{v.Lines + 1, Cut, fmt.Sprintf("no line has the hash %s: lines were cut off the end, or it is another log's", v.head)}
	}
	return nil
}

// misplaced tells a line that was moved from one before which something is missing. The rest of the log is read for that.
func (v *verifier) misplaced(l Line, now number) (*Fault, error) {
	at := v.Lines
	if i := slices.Index(v.hashes, l.Prev); i >= 0 {
		return &Fault{at, Reordered, fmt.Sprintf("it follows line %d, not line %d", i+1, at-1)}, nil
	}
	if l.Prev == (Hash{}) {
		return &Fault{at, Reordered, "a log begins here: it was put behind another"}, nil
	}
	for {
		b, ended, err := v.line()
		if errors.Is(err, errLong) || err == nil && len(b) == 0 && !ended {
			break
		}
		if err != nil {
			return nil, err
		}
		v.Lines++
		if m, err := parse(b); err == nil && m.Hash == l.Prev {
			return &Fault{at, Reordered, fmt.Sprintf("it follows line %d, which stands behind it", v.Lines)}, nil
		}
	}
	// Nothing is missing by the numbers: then the line before was written anew, with a hash that fits it.
	if v.last.n != 0 && (now.run == v.last.run && now.n == v.last.n+1 || now.run != v.last.run && now.n == 1) {
		return &Fault{at - 1, Changed, fmt.Sprintf("line %d follows another line with its number: this one was replaced", at)}, nil
	}
	return &Fault{at, Removed, fmt.Sprintf("what it follows (hash %.16s…) is not in the log", l.Prev)}, nil
}

var errLong = fmt.Errorf("it has more than %d bytes, and no line of a patch log has", MaxLine)

// line reads a line, without its end; ended tells whether it had one. A longer one than there can be is not read to its end: a sparse
// file can have one of exabytes.
func (v *verifier) line() (b []byte, ended bool, err error) {
	for {
		part, err := v.in.ReadSlice('\n')
		b = append(b, part...)
		switch {
		case len(b) > MaxLine:
			return nil, false, errLong
		case err == nil:
			return b[:len(b)-1], true, nil
		case errors.Is(err, io.EOF):
			return b, false, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, false, err
		}
	}
}
