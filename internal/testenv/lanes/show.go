package lanes

import (
	"io"
	"strings"
)

// Show prints for a person what `go test` without -v prints: the verdicts of
// packages, what does not build, and the output of tests that failed.
type Show struct {
	w    io.Writer
	held map[key]*strings.Builder
}

// NewShow makes a Show that prints to w.
func NewShow(w io.Writer) *Show {
	return &Show{w: w, held: map[key]*strings.Builder{}}
}

// Add takes one event and prints what it settles.
func (s *Show) Add(e Event) error {
	if e.Action == "build-output" {
		return s.print(e.Output)
	}
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		if e.Test == "" {
			return s.print(e.Output)
		}
		if s.held[k] == nil {
			s.held[k] = &strings.Builder{}
		}
		s.held[k].WriteString(e.Output)
	case "pass", "skip":
		delete(s.held, k)
		if e.Test == "" {
			return s.flush(e.Package, false)
		}
	case "fail":
		if e.Test == "" {
			return s.flush(e.Package, true)
		}
		if h := s.held[k]; h != nil {
			delete(s.held, k)
			return s.print(h.String())
		}
	}
	return nil
}

// Forget drops what is held of tests that did not end.
func (s *Show) Forget() { clear(s.held) }

// flush settles the tests of a package that never ended: where the package
// failed, theirs is the output that tells why.
func (s *Show) flush(pkg string, print bool) error {
	for k, h := range s.held {
		if k.pkg != pkg {
			continue
		}
		delete(s.held, k)
		if print {
			if err := s.print(h.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Show) print(text string) error {
	if text == "PASS\n" || text == "FAIL\n" {
		return nil // the package's own line follows and says more
	}
	_, err := io.WriteString(s.w, text)
	return err
}
