package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// Schema names the form of a bundle.
const Schema = "cloister-bundle/1"

// MaxBundle bounds a bundle's file, bytes; MaxObject one object in it.
const (
	MaxBundle = 64 << 20
	MaxObject = 16 << 20
)

// maxName bounds names of symbols, files and sites, bytes.
const maxName = 4096

// maxValue bounds a site's value, characters: 64 bits, a sign and a prefix, written in binary.
const maxValue = 80

// Bundle is what is asked for, all of it or nothing. As a file it is JSON: these fields, no others, and nothing behind them.
type Bundle struct {
	Schema  string    `json:"schema"`
	BuildID string    `json:"build_id"`          // hex; of the program that it is for. May be empty in a request that is no file
	Comment string    `json:"comment,omitempty"` // one line for the log
	Replace []Replace `json:"replace,omitempty"`
	Set     []Set     `json:"set,omitempty"`
	Raw     []Raw     `json:"raw,omitempty"`

	digest string // of the file that it was read from
}

// Replace gives a function of the program a new body.
type Replace struct {
	Function string `json:"function"` // name; FILE:NAME where several files have a local one, :NAME for the global one
	Symbol   string `json:"symbol"`   // of the new body, in Object
	File     string `json:"file"`     // where Object was read from, for people
	Object   []byte `json:"object"`   // relocatable ELF object, x86-64; base64 in JSON
}

// Set gives a declared site another value.
type Set struct {
	Site  string `json:"site"`
	Value string `json:"value"` // integer (decimal, 0x…, 0b…, 0o…, negative) for immediates; on or off for branches
}

// Raw exchanges one instruction for another of the same length.
type Raw struct {
	Function string    `json:"function"` // as in Replace
	Offset   uint64    `json:"offset"`   // of the instruction, from the function's start, bytes
	Old      patch.Hex `json:"old"`
	New      patch.Hex `json:"new"`
}

// ParseReplace takes FUNCTION=OBJECT or FUNCTION=OBJECT:SYMBOL apart. Without SYMBOL it is FUNCTION's plain name. The object is not read.
func ParseReplace(arg string) (function, file, symbol string, err error) {
	function, rest, ok := strings.Cut(arg, "=")
	file, symbol = rest, function[strings.LastIndexByte(function, ':')+1:]
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		file, symbol = rest[:i], rest[i+1:]
	}
	if !ok || function == "" || file == "" || symbol == "" {
		return "", "", "", fmt.Errorf("replace %.80q: not FUNCTION=OBJECT:SYMBOL, as in filter=./new.o:filter", arg)
	}
	return function, file, symbol, nil
}

// ParseSet takes SITE=VALUE apart.
func ParseSet(arg string) (Set, error) {
	site, value, ok := strings.Cut(arg, "=")
	if !ok || site == "" || value == "" {
		return Set{}, fmt.Errorf("set site %.80q: not SITE=VALUE, as in rate.limit=0x2a or trace=on", arg)
	}
	return Set{Site: site, Value: value}, nil
}

// Encode gives the file: the same bytes for the same bundle. It refuses what Decode would.
func (b *Bundle) Encode() ([]byte, error) {
	c := *b
	c.Schema = Schema
	if err := c.check(true); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(&c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	if out = append(out, '\n'); len(out) > MaxBundle {
		return nil, fmt.Errorf("write bundle: %d bytes are more than %d: make several", len(out), MaxBundle)
	}
	return out, nil
}

// Decode reads a bundle's file, strictly: a field that it does not know, a second document, or a part out of bounds is an error. Errors of r are passed on.
func Decode(r io.Reader) (*Bundle, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxBundle+1))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w: give a file that --bundle wrote", err)
	}
	if len(raw) > MaxBundle {
		return nil, fmt.Errorf("read bundle: it has more than %d bytes: make several", MaxBundle)
	}
	// The schema first, so that a newer bundle is refused for what it is and not for its first new field.
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("read bundle: not a bundle (%s): make one with --bundle", jsonReason(err))
	}
	if head.Schema != Schema {
		return nil, fmt.Errorf("read bundle: its schema is %q, not %q: make it again with this version's --bundle", head.Schema, Schema)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	b := new(Bundle)
	if err := errors.Join(exactKeys(raw), d.Decode(b)); err != nil {
		return nil, fmt.Errorf("read bundle: damaged (%s): make it again with --bundle", jsonReason(err))
	}
	if err := b.check(true); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	b.digest = hex.EncodeToString(sum[:])
	return b, nil
}

// jsonReason is an error of encoding/json on one line, without the package's name.
func jsonReason(err error) string {
	return strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "json: ")), " ")
}

// check holds the bounds that need no program. A file must name its program.
func (b *Bundle) check(file bool) error {
	bad := func(format string, a ...any) error { return fmt.Errorf("bundle: "+format, a...) }
	switch {
	case len(b.Replace)+len(b.Set)+len(b.Raw) == 0:
		return bad("nothing is asked for: name a function to replace, or a site to set")
	case len(b.Replace)+len(b.Set)+len(b.Raw) > patch.MaxSites:
		return bad("%d changes are more than %d: make several", len(b.Replace)+len(b.Set)+len(b.Raw), patch.MaxSites)
	case !oneLine(b.Comment, maxName):
		return bad("the comment is not one line of at most %d bytes", maxName)
	}
	if id, err := hex.DecodeString(b.BuildID); err != nil || len(id) > 64 || file && len(id) == 0 {
		return bad("build id %.80q is not one: link the program with -Wl,--build-id, and make the bundle again", b.BuildID)
	}
	seen := map[string]bool{}
	for _, r := range b.Replace {
		if !name(r.Function) || !name(r.Symbol) || !oneLine(r.File, maxName) {
			return bad("replace %.80q: function, symbol or file is no name of at most %d bytes: give names without control characters, and call the object something shorter", r.Function, maxName)
		}
		if len(r.Object) == 0 || len(r.Object) > MaxObject {
			return bad("replace %s: the object has %d bytes, not 1 to %d: compile the new function alone", r.Function, len(r.Object), MaxObject)
		}
		if seen["f"+r.Function] {
			return bad("replace %s: it is there twice: leave one", r.Function)
		}
		seen["f"+r.Function] = true
	}
	for _, s := range b.Set {
		if !name(s.Site) || len(s.Site) > abi.SiteName {
			return bad("set site %.80q: it is no name of at most %d bytes: --list shows the sites that there are", s.Site, abi.SiteName)
		}
		if len(s.Value) > maxValue || !name(s.Value) {
			return bad("set site %s: %.80q is no value: write an integer as 42, -1 or 0x2a, and of a branch %s or %s", s.Site, s.Value, branchOn, branchOff)
		}
		if seen["s"+s.Site] {
			return bad("set site %s: it is there twice: leave one", s.Site)
		}
		seen["s"+s.Site] = true
	}
	for _, r := range b.Raw {
		if !name(r.Function) {
			return bad("change %.80q: the function is no name of at most %d bytes: make the bundle again", r.Function, maxName)
		}
		if len(r.Old) == 0 || len(r.Old) > patch.MaxSite || len(r.New) != len(r.Old) {
			return bad("change %s+%#x: %d old bytes and %d new ones: give one instruction for another of the same length, 1 to %d bytes", r.Function, r.Offset, len(r.Old), len(r.New), patch.MaxSite)
		}
		if bytes.Equal(r.Old, r.New) {
			return bad("change %s+%#x: old and new bytes are the same: leave it out", r.Function, r.Offset)
		}
	}
	return nil
}

// sum is the digest for the log: what `sha256sum` gives for the bundle's or the object's file.
func (b *Bundle) sum() (string, error) {
	if b.digest != "" {
		return b.digest, nil
	}
	var of []byte
	switch {
	case len(b.Replace) == 1 && len(b.Set)+len(b.Raw) == 0:
		of = b.Replace[0].Object
	case len(b.Set) == 1 && len(b.Replace)+len(b.Raw) == 0:
		of = []byte(b.Set[0].Site + "=" + b.Set[0].Value)
	default:
		c := *b
		c.Schema = Schema
		var err error
		if of, err = json.Marshal(&c); err != nil {
			return "", fmt.Errorf("digest of the request: %w", err)
		}
	}
	d := sha256.Sum256(of)
	return hex.EncodeToString(d[:]), nil
}

// title is the request on one line, for the log.
func (b *Bundle) title() string {
	var parts []string
	for _, r := range b.Replace {
		parts = append(parts, "replace "+r.Function+"="+r.File+":"+r.Symbol)
	}
	for _, s := range b.Set {
		parts = append(parts, "set "+s.Site+"="+s.Value)
	}
	for _, r := range b.Raw {
		parts = append(parts, fmt.Sprintf("change %s+%#x", r.Function, r.Offset))
	}
	const most = 4
	if n := len(parts); n > most {
		parts = append(parts[:most], fmt.Sprintf("and %d more", n-most))
	}
	line := strings.Join(parts, ", ")
	if b.Comment != "" {
		line = b.Comment + ": " + line
	}
	return line
}

func name(s string) bool { return s != "" && oneLine(s, maxName) }

// oneLine says that s can stand in a log or an error without breaking it.
func oneLine(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// exactKeys refuses what encoding/json lets pass: a key in other letters' case, and a key twice of which the last would win. raw is valid JSON.
func exactKeys(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	type level struct {
		seen map[string]bool // nil: an array
		key  bool            // the next token is a key
	}
	var stack []level
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{seen: map[string]bool{}, key: true})
			continue
		case json.Delim('['):
			stack = append(stack, level{})
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			top--
		default:
			if k, ok := t.(string); ok && top >= 0 && stack[top].key {
				if stack[top].seen[k] || k != strings.ToLower(k) {
					return fmt.Errorf("key %.80q is there twice or in upper case", k)
				}
				stack[top].seen[k], stack[top].key = true, false
				continue
			}
		}
		if top >= 0 && stack[top].seen != nil {
			stack[top].key = true
		}
	}
}
