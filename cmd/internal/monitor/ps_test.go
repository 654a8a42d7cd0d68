package monitor

import (
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"
)

func TestParseMixed(t *testing.T) {
	for _, x := range []struct {
		args string
		rest []string
		on   bool
		bad  bool
	}{
		{"", nil, false, false}, {"a", []string{"a"}, false, false}, {"--on a", []string{"a"}, true, false}, {"a --on", []string{"a"}, true, false},
		{"a --on b", []string{"a", "b"}, true, false}, {"-- --on", []string{"--on"}, false, false}, {"a -- --on b", []string{"a", "--on", "b"}, false, false},
		{"a --off", nil, false, true},
	} {
		f := newFlags("x")
		on := f.Bool("on", false, "")
		rest, err := parseMixed(f, strings.Fields(x.args))
		if (err != nil) != x.bad || !x.bad && (!slices.Equal(rest, x.rest) || *on != x.on) {
			t.Errorf("%q: %q, %v, %v", x.args, rest, *on, err)
		}
	}
	if _, err := parseMixed(newFlags("x"), []string{"a", "-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}
