package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister-vmm/cloister/patch"
)

// Hash is what a line is chained by.
type Hash [sha256.Size]byte

// String gives 64 hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads 64 hexadecimal digits, upper or lower case.
func ParseHash(s string) (h Hash, err error) {
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("%.80q: a hash has %d hexadecimal digits", s, 2*len(h))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, fmt.Errorf("%.80q: a hash has %d hexadecimal digits", s, 2*len(h))
	}
	return h, nil
}

// MaxLine bounds a line, bytes with its end. A record of patch.MaxSites sites has about a megabyte.
const MaxLine = 8 << 20

// The parts of a line around its record and its hashes.
const (
	partRecord = `{"record":`
	partPrev   = `,"prev":"`
	partHash   = `","hash":"`
	partEnd    = `"}`
	partDigits = 2 * sha256.Size
	partTail   = len(partPrev) + partDigits + len(partHash) + partDigits + len(partEnd)
)

// Line is one line of a log that is right in itself.
type Line struct {
	Number int    // from 1
	Record []byte // as it stands there, JSON; valid until the callback returns
	Prev   Hash   // of the line before
	Hash   Hash
}

// Decode gives the record.
func (l *Line) Decode() (r patch.Record, err error) {
	if err := json.Unmarshal(l.Record, &r); err != nil {
		return r, fmt.Errorf("line %d: %w", l.Number, err)
	}
	return r, nil
}

// chain is the hash of a line with that record.
func chain(prev Hash, record []byte) Hash {
	h := sha256.New()
	h.Write(prev[:]) // a hash.Hash returns no error
	h.Write(record)
	return Hash(h.Sum(nil))
}

// chainTorn stands for the hash of a torn line. The word before its bytes keeps it apart from the hash of any record: or
// a whole line could be replaced by its bare record and pass for torn.
func chainTorn(prev Hash, torn []byte) Hash {
	h := sha256.New()
	h.Write(prev[:])
	h.Write([]byte("torn:"))
	h.Write(torn)
	return Hash(h.Sum(nil))
}

// encode makes the line of a record, with its end.
func encode(prev Hash, r *patch.Record) ([]byte, Hash, error) {
	record, err := json.Marshal(r)
	if err != nil {
		return nil, Hash{}, err
	}
	if len(record)+len(partRecord)+partTail+1 > MaxLine {
		return nil, Hash{}, fmt.Errorf("a record of %d bytes, at most %d", len(record), MaxLine-len(partRecord)-partTail-1)
	}
	h := chain(prev, record)
	var b bytes.Buffer
	b.Grow(len(partRecord) + len(record) + partTail + 1)
	for _, part := range []string{partRecord, string(record), partPrev, prev.String(), partHash, h.String(), partEnd, "\n"} {
		b.WriteString(part)
	}
	return b.Bytes(), h, nil
}

var (
	errForm = errors.New("it is no line of a patch log")
	errHash = errors.New("its hash does not fit its record")
)

// parse takes a line without its end. errHash comes with the line.
func parse(b []byte) (l Line, err error) {
	rest, ok := bytes.CutPrefix(b, []byte(partRecord))
	if !ok || len(rest) < partTail {
		return l, errForm
	}
	record, tail := rest[:len(rest)-partTail], string(rest[len(rest)-partTail:])
	prev, hash := tail[len(partPrev):][:partDigits], tail[len(tail)-len(partEnd)-partDigits:][:partDigits]
	if l.Prev, err = ParseHash(prev); err != nil {
		return l, errForm
	}
	if l.Hash, err = ParseHash(hash); err != nil {
		return l, errForm
	}
	// One form only: other spaces, other digits would be a change that no hash covers.
	if tail != partPrev+l.Prev.String()+partHash+l.Hash.String()+partEnd || !bytes.HasPrefix(record, []byte("{")) || !json.Valid(record) {
		return l, errForm
	}
	l.Record = record
	if chain(l.Prev, record) != l.Hash {
		return l, errHash
	}
	return l, nil
}
