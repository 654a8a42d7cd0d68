package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Whatever an error quotes, and however many it is made of: one line, with its beginning and its end.
func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("open a\nb: no such file"), "open a; b: no such file"},
		{errors.Join(errors.New("one"), errors.New("two")), "one; two"},
		{errors.New("a\x1b[2J\t\u2028b\n"), `a\x1b[2J\t\u2028b`},
		{errors.New("it's “so” – 5 µs"), "it's “so” – 5 µs"},
		{fmt.Errorf("open %s: choose another", strings.Repeat("x", 100_000)), "open " + strings.Repeat("x", maxHead-5) + " … " + strings.Repeat("x", maxTail-16) + ": choose another"},
	} {
		if got := oneLine(c.err.Error()); got != c.want {
			t.Errorf("%.80q: %q", c.err, got)
		}
	}
}
