package breaks

import "strconv"

// PatchReport is a change of the running program's code that somebody asked for, whatever became of it. Its breaks are planned
// ones.
type PatchReport struct {
	Number  uint64       `json:"number"`  // from 1
	Outcome string       `json:"outcome"` // committed, refused, aborted, rolled-back, dead
	Name    string       `json:"name"`    // what was asked for
	Reverts uint64       `json:"reverts"` // the patch that it took back; 0: none
	Actor   string       `json:"actor"`   // user and process
	Time    string       `json:"time"`    // RFC 3339
	Reason  string       `json:"reason"`  // why it was not committed
	Stops   int          `json:"stops"`   // how often the vCPUs were stopped for it
	VCPUs   []PatchPause `json:"vcpus"`
}

// PatchPause is what a patch did to one vCPU, at the last of its stops. A null was not measured.
type PatchPause struct {
	ID      int     `json:"id"`
	CPU     *int    `json:"cpu"`      // host core it owns; null: none
	Where   string  `json:"where"`    // guest, safe-point, ended, or the cause of the exit that was being served
	Break   bool    `json:"break"`    // the stop took it out of the guest
	StopNS  *uint64 `json:"stop_ns"`  // from the request to its acknowledgement
	PauseNS *uint64 `json:"pause_ns"` // from there to its release
}

// PatchLog is where the records of patches are.
type PatchLog struct {
	File string `json:"file"`
	Head string `json:"head"` // hash of the latest record that this run has logged, 64 hexadecimal digits
}

// patchRows bounds the patches on a terminal; the latest are shown.
const patchRows = 10

func (p *page) patches(list []PatchReport, log *PatchLog) {
	if len(list) == 0 && log == nil {
		return
	}
	p.line("")
	p.line("  %s", p.paint(bold, "patches"))
	if len(list) > 0 && list[0].Number > 1 {
		p.line("    the JSON report begins with patch %d", list[0].Number)
	}
	if more := len(list) - patchRows; more > 0 {
		p.line("    %s before these in the JSON report", pluralAs(uint64(more), "patch", "patches"))
		list = list[more:]
	}
	t := table{left: []int{1, 2, 5}}
	for i := range list {
		r := &list[i]
		if i == 0 {
			t.row("number", "outcome", "patch", "stops", "longest pause", "reason")
		}
		longest := "-"
		var ns uint64
		for _, v := range r.VCPUs {
			if v.PauseNS != nil && *v.PauseNS >= ns {
				ns = *v.PauseNS
				longest = duration(ns)
				if len(r.VCPUs) > 1 {
					longest += ", vCPU " + strconv.Itoa(v.ID)
				}
			}
		}
		outcome := r.Outcome
		if r.Reverts != 0 && r.Outcome == "committed" {
			outcome += ", takes back " + strconv.FormatUint(r.Reverts, 10)
		}
		t.row(strconv.FormatUint(r.Number, 10), clean(outcome), clean(r.Name), strconv.Itoa(r.Stops), longest, clean(r.Reason))
	}
	t.write(p, "    ")
	if log != nil {
		p.line("    log %s, head %s", clean(log.File), clean(log.Head))
	}
}
