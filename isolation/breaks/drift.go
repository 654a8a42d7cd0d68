package breaks

import "fmt"

// Drift is a precondition of isolation that somebody undid while the run went on: an interrupt's affinity that was
// moved back, a governor that changed.
type Drift struct {
	AtNS   uint64 `json:"at_ns"` // since the vCPU's first entry, when it was noticed; up to a second after it happened
	Sealed bool   `json:"sealed"`
	What   string `json:"what"`
	File   string `json:"file"`
	Was    string `json:"was"`
	Is     string `json:"is"`
}

// String is one line, without the time.
func (d Drift) String() string {
	return fmt.Sprintf("%s: %s was %s, is %s", d.What, d.File, d.Was, d.Is)
}

// RefusedSeal is a call of cloister_isolate(1), or several with one reason, that was answered EAGAIN: the core was no longer
// as quiet as the run requires.
type RefusedSeal struct {
	AtNS    uint64 `json:"at_ns"` // the first, since the first vCPU's first entry
	VCPU    uint32 `json:"vcpu"`
	CPU     *int   `json:"cpu"`     // the core that it owns; null: none
	Require string `json:"require"` // the grade, A to D
	Why     string `json:"why"`
	Count   uint64 `json:"count"` // 1 or more
}

// String is one line, without the time.
func (s RefusedSeal) String() string {
	times := ""
	if s.Count > 1 {
		times = fmt.Sprintf(" %d times", s.Count)
	}
	return fmt.Sprintf("vCPU %d was not sealed%s: %s", s.VCPU, times, s.Why)
}
