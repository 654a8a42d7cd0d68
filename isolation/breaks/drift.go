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
