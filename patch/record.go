package patch

// RecordSchema names the form of a Record.
const RecordSchema = "cloister-patch/1"

// Outcomes of a patch.
const (
	Committed  = "committed"
	Refused    = "refused"     // the plan, the old bytes or the place of a vCPU did not allow it: nothing was changed
	Aborted    = "aborted"     // a vCPU did not stop in time: nothing was changed
	RolledBack = "rolled-back" // what was read back was not what was stored: the old bytes are back and were read back
	Checked    = "checked"     // a dry run found nothing wrong
	Dead       = "dead"        // text in doubt, or a vCPU that did not serialise: the VM was ended
)

// Record is what became of one patch. Times are host TSC cycles; TSCHz makes seconds of them.
type Record struct {
	Schema  string `json:"schema"`
	VM      string `json:"vm"`
	Started string `json:"started"` // of the VM, RFC 3339: names the run
	BuildID string `json:"build_id"`
	Number  uint64 `json:"number"` // grows by one with each patch of a run, from 1
	Reverts uint64 `json:"reverts,omitempty"`
	Name    string `json:"name"`
	Actor   string `json:"actor"`
	Digest  string `json:"digest,omitempty"`
	Time    string `json:"time"` // wall clock when it was asked, RFC 3339 with nanoseconds
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"` // one line: why it was not committed

	TSCHz      uint64 `json:"tsc_hz"`
	Stops      int    `json:"stops"`      // how often the vCPUs were stopped: more than 1 after retries
	Generation uint64 `json:"generation"` // of the stop protocol, of the last of them
	Requested  uint64 `json:"requested_tsc"`
	Begun      uint64 `json:"begun_tsc"`       // of the last stop: before the first vCPU was asked to; 0: there was none
	Stopped    uint64 `json:"stopped_tsc"`     // the last acknowledgement was seen, by who stores
	FirstStore uint64 `json:"first_store_tsc"` // 0: nothing was stored
	LastStore  uint64 `json:"last_store_tsc"`
	Released   uint64 `json:"released_tsc"`

	VCPUs []VCPU `json:"vcpus"`
	Sites []Site `json:"sites"`
	// SpareText and SpareData are how many bytes of new code and data were loaded.
	SpareText int `json:"spare_text"`
	SpareData int `json:"spare_data"`

	TextBefore string `json:"text_sha256_before,omitempty"`
	TextAfter  string `json:"text_sha256_after,omitempty"`
}

// Values of VCPU.Where besides the causes of exits.
const (
	WhereGuest     = "guest"
	WhereSafePoint = "safe-point"
	WhereIdle      = "idle" // it has no thread of the guest
	WhereEnded     = "ended"
)

// VCPU is where one vCPU was when it was stopped for the last time.
type VCPU struct {
	ID        int    `json:"id"`
	CPU       int    `json:"cpu"` // the host core it owns, or -1
	RIP       uint64 `json:"rip"`
	Where     string `json:"where"`            // "guest"; "safe-point"; or the cause of the exit that was being served; "ended"
	Thread    string `json:"thread,omitempty"` // the guest's thread
	Events    string `json:"events,omitempty"` // exception or interrupt that waits to be injected, at or between the sites, or while an exit was served
	AckTSC    uint64 `json:"ack_tsc"`
	SyncTSC   uint64 `json:"sync_tsc"`
	Serialise string `json:"serialise"`    // instruction executed
	Exits     uint64 `json:"exits_before"` // KVM's own count, where the kernel gives one
	ExitsAt   uint64 `json:"exits_after"`
	Break     bool   `json:"break"`   // the stop took it out of the guest: one planned break
	Retries   int    `json:"retries"` // stops in vain because of where this vCPU stood
}
