package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cloister-vmm/cloister/patch"
)

// TestBundle makes a file of several changes, reads it again, and applies it to a running program.
func TestBundle(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	off, nop := rawAt(t, g, "raw", "660f1f0400")
	b := &Bundle{
		BuildID: g.state.BuildID, Comment: "release 4",
		Replace: []Replace{
			{Function: "filter", Symbol: "filter", File: "new.o", Object: newObject(t, "long other(long); long filter(long x) { return other(x) * 2; }", "-O2")},
			{Function: "target.c:secret", Symbol: "better", File: "dir/new.o", Object: newObject(t, "long better(long x) { static long n = 7; return x + n++; }", "-O2")},
		},
		Set: []Set{{"rate.limit", "0x10"}, {"trace", "on"}},
		Raw: []Raw{{Function: "raw", Offset: off, Old: nop, New: unhex(t, "660f1f0401")}},
	}
	file, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := again.Encode(); err != nil || !bytes.Equal(twice, file) {
		t.Errorf("encoded again it is another file (%v)\n%s\n%s", err, file, twice)
	}
	m := g.plan(again)
	sum := sha256.Sum256(file)
	if m.Plan.Digest != hex.EncodeToString(sum[:]) || m.Plan.BuildID != g.state.BuildID || !m.Plan.SafePoint || len(m.Plan.Sites) != 6 {
		t.Errorf("plan %+v", m.Plan)
	}
	if want := "release 4: replace filter=new.o:filter, replace target.c:secret=dir/new.o:better, set rate.limit=0x10, set trace=on, and 1 more"; m.Plan.Name != want {
		t.Errorf("the plan is called %q, want %q", m.Plan.Name, want)
	}
	g.apply(m.Plan)
	if got := fmt.Sprint(g.call("filter", 1), g.call("other", 1), g.call("limit", 1), g.call("twice", 1), g.call("traced", 1), g.call("note_of", 1)); got != "14 8 17 18 1001 -4" {
		t.Errorf("after the bundle the functions give %s", got)
	}

	// One part that cannot be made refuses all.
	for _, spoil := range []func(b *Bundle){
		func(b *Bundle) { b.Set[1].Value = "maybe" },
		func(b *Bundle) { b.Replace[1].Symbol = "worse" },
		func(b *Bundle) { b.Raw[0].Offset++ },
		func(b *Bundle) { b.BuildID = "00ff" },
	} {
		c := *b
		c.Replace, c.Set, c.Raw = append([]Replace{}, b.Replace...), append([]Set{}, b.Set...), append([]Raw{}, b.Raw...)
		spoil(&c)
		if m, err := g.open().Plan(&c); m != nil || err == nil {
			t.Errorf("%+v was planned in part", c)
		}
	}
	c := *b
	c.BuildID = "00ff"
	_, err = g.open().Plan(&c)
	refused(t, err, "apply bundle", "for build id 00ff, the running program's is "+g.state.BuildID)
}

// TestDigests: what the log says that a plan was made from is what sha256sum says of the file.
func TestDigests(t *testing.T) {
	obj := []byte("object")
	for _, c := range []struct {
		b    Bundle
		want string
	}{
		{Bundle{Replace: []Replace{{Object: obj}}}, "object"},
		{Bundle{Set: []Set{{"a", "1"}}}, "a=1"},
	} {
		sum := sha256.Sum256([]byte(c.want))
		if got, err := c.b.sum(); err != nil || got != hex.EncodeToString(sum[:]) {
			t.Errorf("digest of %+v: %s, %v", c.b, got, err)
		}
	}
	one, two := Bundle{Set: []Set{{"a", "1"}, {"b", "2"}}}, Bundle{Set: []Set{{"a", "1"}, {"b", "3"}}}
	x, err1 := one.sum()
	y, err2 := two.sum()
	if x == y || err1 != nil || err2 != nil {
		t.Errorf("digests %s, %s", x, y)
	}
}

// TestDecodeRefused: files that are no bundles.
func TestDecodeRefused(t *testing.T) {
	const head = `{"schema":"cloister-bundle/1","build_id":"00ff"`
	if _, err := Decode(strings.NewReader(head + `,"set":[{"site":"a","value":"1"}]}` + "\n ")); err != nil {
		t.Fatal(err)
	}
	many := strings.Repeat(`{"site":"a","value":"1"},`, patch.MaxSites) + `{"site":"a","value":"1"}`
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "not a bundle"},
		{"text", "hello", "not a bundle"},
		{"array", "[]", "not a bundle"},
		{"no schema", `{"set":[]}`, `schema is ""`},
		{"newer", `{"schema":"cloister-bundle/2","more":1}`, `schema is "cloister-bundle/2"`},
		{"unknown field", head + `,"extra":1,"set":[{"site":"a","value":"1"}]}`, `unknown field "extra"`},
		{"unknown field within", head + `,"set":[{"site":"a","value":"1","when":"now"}]}`, `unknown field "when"`},
		{"twice", head + `,"set":[{"site":"a","value":"1","value":"2"}]}`, "twice"},
		{"the same in upper case", head + `,"set":[{"site":"a","value":"1","VALUE":"2"}]}`, "upper case"},
		{"trailing", head + `,"set":[{"site":"a","value":"1"}]} {}`, "not a bundle"},
		{"cut", head + `,"set":[{"site":"a"`, "not a bundle"},
		{"nothing asked", head + `}`, "nothing is asked for"},
		{"too much", head + `,"set":[` + many + `]}`, "are more than 4096"},
		{"no build id", `{"schema":"cloister-bundle/1","set":[{"site":"a","value":"1"}]}`, "--build-id"},
		{"build id", `{"schema":"cloister-bundle/1","build_id":"0x12","set":[{"site":"a","value":"1"}]}`, `build id "0x12" is not one`},
		{"long build id", `{"schema":"cloister-bundle/1","build_id":"` + strings.Repeat("00", 65) + `","set":[{"site":"a","value":"1"}]}`, "is not one"},
		{"comment", head + `,"comment":"a\nb","set":[{"site":"a","value":"1"}]}`, "one line"},
		{"base64", head + `,"replace":[{"function":"f","symbol":"f","file":"f","object":"%%"}]}`, "damaged"},
		{"no object", head + `,"replace":[{"function":"f","symbol":"f","file":"f","object":""}]}`, "the object has 0 bytes"},
		{"no function", head + `,"replace":[{"symbol":"f","file":"f","object":"AAAA"}]}`, "no name"},
		{"two replacements", head + `,"replace":[{"function":"f","symbol":"f","file":"f","object":"AAAA"},{"function":"f","symbol":"g","file":"f","object":"AAAA"}]}`, "twice"},
		{"two settings", head + `,"set":[{"site":"a","value":"1"},{"site":"a","value":"1"}]}`, "twice"},
		{"long site", head + `,"set":[{"site":"` + strings.Repeat("a", 129) + `","value":"1"}]}`, "no name"},
		{"long value", head + `,"set":[{"site":"a","value":"` + strings.Repeat("1", 81) + `"}]}`, "is no value: write an integer"},
		{"hex", head + `,"raw":[{"function":"f","offset":0,"old":"zz","new":"00"}]}`, "damaged"},
		{"lengths", head + `,"raw":[{"function":"f","offset":0,"old":"00","new":"0011"}]}`, "1 old bytes and 2 new ones"},
		{"no bytes", head + `,"raw":[{"function":"f","offset":0,"old":"","new":""}]}`, "0 old bytes"},
		{"offset", head + `,"raw":[{"function":"f","offset":-1,"old":"00","new":"11"}]}`, "damaged"},
		{"deep", head + `,"set":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, "not a bundle"},
		{"too long", head + strings.Repeat(" ", MaxBundle) + `,"set":[{"site":"a","value":"1"}]}`, "more than 67108864 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := Decode(strings.NewReader(c.text))
			refused(t, err, "bundle: ", c.want)
			if b != nil {
				t.Errorf("a bundle beside the error: %+v", b)
			}
		})
	}
	if _, err := Decode(iotest.ErrReader(fmt.Errorf("no disk"))); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("a failing reader gives %v", err)
	}
	big := &Bundle{BuildID: "00ff"}
	for i := range 4 {
		big.Replace = append(big.Replace, Replace{Function: fmt.Sprint("f", i), Symbol: "f", Object: make([]byte, MaxObject)})
	}
	_, err := big.Encode()
	refused(t, err, "write bundle", "make several")
	_, err = (&Bundle{Set: []Set{{"a", "1"}}}).Encode()
	refused(t, err, "--build-id")
}

// TestArguments: the two forms in which a command line asks.
func TestArguments(t *testing.T) {
	for _, c := range []struct{ arg, function, file, symbol string }{
		{"filter=./new.o:filter", "filter", "./new.o", "filter"},
		{"filter=new.o", "filter", "new.o", "filter"},
		{"a.c:filter=new.o", "a.c:filter", "new.o", "filter"},
		{":filter=dir:x/new.o", ":filter", "dir:x/new.o", "filter"},
		{"f=a=b.o:g", "f", "a=b.o", "g"},
	} {
		function, file, symbol, err := ParseReplace(c.arg)
		if got := []string{function, file, symbol}; err != nil || !reflect.DeepEqual(got, []string{c.function, c.file, c.symbol}) {
			t.Errorf("%s: %q, %v", c.arg, got, err)
		}
	}
	for _, arg := range []string{"", "filter", "=new.o", "filter=", "filter=:f", "filter=new.o:", "a.c:=new.o"} {
		_, _, _, err := ParseReplace(arg)
		refused(t, err, "FUNCTION=OBJECT:SYMBOL")
	}
	if s, err := ParseSet("rate.limit=a=b"); err != nil || s != (Set{"rate.limit", "a=b"}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, arg := range []string{"", "a", "=1", "a="} {
		_, err := ParseSet(arg)
		refused(t, err, "SITE=VALUE")
	}
}
