package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// journalVersion is in the first record; another one is foreign.
const journalVersion = "cloister.host-journal/v1"

// What a record says.
const (
	opOpen    = "open"    // the first: version and boot
	opClaim   = "claim"   // these cores are this owner's
	opSaw     = "saw"     // a thread's affinity is Old, and the kernel may change it by the way
	opSet     = "set"     // about to write: from Old to New
	opDone    = "done"    // written, and reads as Now; the owner holds it, or with Leave no longer does
	opRelease = "release" // the owner has given everything back
)

// record is one line of the journal.
type record struct {
	Op      string   `json:"op"`
	Version string   `json:"version,omitempty"`
	Boot    string   `json:"boot,omitempty"`
	Claim   *Claim   `json:"claim,omitempty"`
	Owner   string   `json:"owner,omitempty"`
	Setting *Setting `json:"setting,omitempty"`
	Old     string   `json:"old,omitempty"`
	New     string   `json:"new,omitempty"`
	Key     string   `json:"key,omitempty"`
	Now     string   `json:"now,omitempty"`
	Leave   bool     `json:"leave,omitempty"`
	Adopt   bool     `json:"adopt,omitempty"` // Old is what it was before anybody came, whatever was known of it
}

// Claim is the right of an owner to cores, from Apply to Restore.
type Claim struct {
	Owner string `json:"owner"` // unique among claims
	CPUs  []int  `json:"cpus"`
	PID   int    `json:"pid,omitempty"`   // the process that the claim is for; 0: it outlives its maker
	Start uint64 `json:"start,omitempty"` // of that process
	Off   []int  `json:"off,omitempty"`   // siblings that are off line for it
}

// all gives the CPUs that nothing else may use for this claim's sake.
func (c Claim) all() []int { return append(slices.Clone(c.CPUs), c.Off...) }

// alive reports whether the claim's process is still there; a claim without one has no end of its own.
func (c Claim) alive(s System) bool {
	if c.PID == 0 {
		return true
	}
	_, ok := findThread(s, fmt.Sprintf("%d@%d", c.PID, c.Start))
	return ok
}

// String is how messages name an owner.
func (c Claim) String() string {
	if c.PID == 0 {
		return c.Owner
	}
	return fmt.Sprintf("%s (process %d)", c.Owner, c.PID)
}

// held is a setting that is not as it was.
type held struct {
	Setting
	orig    string
	ours    []string // values that may stand there through us
	holders []holder // in the order in which they came
}

// holder is an owner that a setting is changed for.
type holder struct {
	owner string
	want  string // Setting.Want, which may differ from owner to owner
}

func (h *held) by(owner string) bool {
	return slices.ContainsFunc(h.holders, func(o holder) bool { return o.owner == owner })
}

// without gives the holders but one.
func (h *held) without(owner string) []holder {
	return slices.DeleteFunc(slices.Clone(h.holders), func(o holder) bool { return o.owner == owner })
}

// state is what a journal amounts to.
type state struct {
	boot   string
	sum    uint32 // of the last line
	claims []Claim
	order  []string // keys, oldest first
	held   map[string]*held
}

func (st *state) claim(owner string) *Claim {
	for i := range st.claims {
		if st.claims[i].Owner == owner {
			return &st.claims[i]
		}
	}
	return nil
}

// cores gives the CPUs of these holders.
func (st *state) cores(holders []holder) (list []int) {
	for _, o := range holders {
		if c := st.claim(o.owner); c != nil {
			list = append(list, c.all()...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// claimed gives the CPUs of all owners, but of one.
func (st *state) claimed(but string) (list []int) {
	for _, c := range st.claims {
		if c.Owner != but {
			list = append(list, c.all()...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// take adds one record to the state.
func (st *state) take(r *record) error {
	if (r.Op == opOpen) != (st.boot == "") {
		return errors.New("the first record, and only that, is the opening one")
	}
	switch r.Op {
	case opOpen:
		if r.Version != journalVersion {
			return fmt.Errorf("it is of version %.60q, this is %s", r.Version, journalVersion)
		}
		if r.Boot == "" {
			return errors.New("it names no boot")
		}
		st.boot, st.held = r.Boot, map[string]*held{}
	case opClaim:
		if r.Claim == nil || r.Claim.Owner == "" || len(r.Claim.CPUs) == 0 {
			return errors.New("a claim without an owner or without cores")
		}
		for _, c := range r.Claim.all() {
			if c < 0 || c > cores.MaxCPU {
				return fmt.Errorf("a claim on CPU %d", c)
			}
		}
		for _, c := range st.claims {
			if c.Owner == r.Claim.Owner || meets(c.CPUs, r.Claim.CPUs) {
				return fmt.Errorf("two claims on CPUs %s", cores.Format(r.Claim.CPUs))
			}
		}
		st.claims = append(st.claims, *r.Claim)
	case opSaw, opSet:
		if r.Setting == nil || st.claim(r.Owner) == nil {
			return errors.New("a setting without an owner")
		}
		if err := r.Setting.valid(); err != nil {
			return err
		}
		key := r.Setting.key()
		h := st.held[key]
		if h == nil {
			h = &held{Setting: *r.Setting, orig: r.Old, ours: []string{r.Old}}
			st.held[key] = h
			st.order = append(st.order, key)
		}
		switch {
		case r.Op == opSet:
			h.ours = append(h.ours, r.New)
		case r.Setting.Kind != Affinity:
			return fmt.Errorf("%s was seen, and is no thread's", r.Setting)
		case r.Adopt:
			h.Rule, h.orig, h.ours = r.Setting.Rule, r.Old, []string{r.Old}
		}
		if !h.by(r.Owner) {
			h.holders = append(h.holders, holder{r.Owner, r.Setting.Want})
		}
	case opDone:
		h := st.held[r.Key]
		if h == nil {
			return fmt.Errorf("%.80q is done and was never begun", r.Key)
		}
		h.ours = []string{r.Now}
		if r.Leave {
			h.holders = h.without(r.Owner)
		}
		if len(h.holders) == 0 {
			delete(st.held, r.Key)
			st.order = slices.DeleteFunc(st.order, func(k string) bool { return k == r.Key })
		}
	case opRelease:
		for _, h := range st.held {
			if h.by(r.Owner) {
				return fmt.Errorf("%.80q was released and still holds %s", r.Owner, h.Setting)
			}
		}
		st.claims = slices.DeleteFunc(st.claims, func(c Claim) bool { return c.Owner == r.Owner })
	default:
		return fmt.Errorf("what is %.40q?", r.Op)
	}
	return nil
}

// castagnoli is the polynomial that storage uses (RFC 3720, appendix B.4).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode makes the line of a record: its JSON, a tab, a checksum, a newline. The checksum is the CRC-32C of the line
// before's and the JSON, so that a line that is lost or out of its place is seen too.
func (r *record) encode(before uint32) ([]byte, uint32, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, 0, fmt.Errorf("encode a record: %w", err)
	}
	sum := crc32.Update(before, castagnoli, b)
	return fmt.Appendf(b, "\t%08x\n", sum), sum, nil
}

// errDamaged: a line is not as it was written.
var errDamaged = errors.New("it is damaged, or a line before it is missing")

// parseJournal replays a journal. whole is how many of its bytes are good: the rest is the beginning of a last line that
// was torn, whose write never began. Any other damage is an error, which says where.
func parseJournal(b []byte) (st state, whole int, err error) {
	for n := 1; whole < len(b); n++ {
		end := bytes.IndexByte(b[whole:], '\n')
		if end < 0 {
			if !torn(b[whole:], st.sum) {
				err = fmt.Errorf("line %d: %w", n, errDamaged)
			}
			return st, whole, err
		}
		r, sum, err := decode(b[whole:whole+end], st.sum)
		if err == nil {
			err = st.take(r)
		}
		if err != nil {
			return st, whole, fmt.Errorf("line %d: %w", n, err)
		}
		st.sum = sum
		whole += end + 1
	}
	return st, whole, nil
}

// torn reports whether this can be the beginning of a record that was cut short with the process that wrote it. (One that
// was cut short with the machine is of another boot.) A line that has lost its newline and is otherwise whole can; one that is
// wrong cannot.
func torn(end []byte, before uint32) bool {
	const head = `{"op":"`
	n := min(len(head), len(end))
	if string(end[:n]) != head[:n] || slices.ContainsFunc(end, func(c byte) bool { return c < ' ' && c != '\t' }) {
		return false
	}
	text, sum, found := bytes.Cut(end, []byte("\t")) // there is none in JSON but as an escape
	return !found || strings.HasPrefix(fmt.Sprintf("%08x", crc32.Update(before, castagnoli, text)), string(sum))
}

func decode(line []byte, before uint32) (*record, uint32, error) {
	i := bytes.LastIndexByte(line, '\t')
	if i < 0 {
		return nil, 0, errDamaged
	}
	sum := crc32.Update(before, castagnoli, line[:i])
	if fmt.Sprintf("%08x", sum) != string(line[i+1:]) {
		return nil, 0, errDamaged
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(line[:i]))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, 0, fmt.Errorf("%w", err)
	}
	return &r, sum, nil
}
