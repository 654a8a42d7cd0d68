package breaks

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

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

// PatchPauses is how long one vCPU was held by patches, by all that stopped it: from its acknowledgement of a stop to its release.
type PatchPauses struct {
	ID        int      `json:"id"`
	Count     uint64   `json:"count"`
	TotalNS   uint64   `json:"total_ns"`
	WorstNS   uint64   `json:"worst_ns"`
	Histogram []Bucket `json:"histogram"`
}

// Pauses counts them; the zero value has none.
type Pauses struct {
	Count, TotalNS, worst uint64
	hist                  [NHist]uint64
}

// Add counts one, in nanoseconds.
func (p *Pauses) Add(ns uint64) {
	p.Count++
	p.TotalNS += ns
	p.worst = max(p.worst, ns)
	p.hist[min(bits.Len64(ns), NHist-1)]++
}

// Report is those of vCPU id.
func (p *Pauses) Report(id int) PatchPauses {
	return PatchPauses{ID: id, Count: p.Count, TotalNS: p.TotalNS, WorstNS: p.worst, Histogram: buckets(p.hist[:], 1e9)} // a cycle of 1 ns
}

// PatchLog is where the records of patches are.
type PatchLog struct {
	File string `json:"file"`
	Head string `json:"head"` // hash of the latest record that this run has logged, 64 hexadecimal digits
}

// patchRows bounds the patches on a terminal; the latest are shown.
const patchRows = 10

func (p *page) patches(list []PatchReport, pauses []PatchPauses, log *PatchLog) {
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
	for i := range pauses {
		v := &pauses[i]
		var scale []string
		for _, b := range v.Histogram {
			if b.Count > 0 {
				scale = append(scale, fmt.Sprintf("%d up to %s", b.Count, duration(b.AtMostNS)))
			}
		}
		p.line("    vCPU %d was held %s, %s in all, %s the longest: %s", v.ID, pluralAs(v.Count, "time", "times"), duration(v.TotalNS), duration(v.WorstNS), strings.Join(scale, ", "))
	}
	if log != nil {
		p.line("    log %s, head %s", clean(log.File), clean(log.Head))
	}
}
