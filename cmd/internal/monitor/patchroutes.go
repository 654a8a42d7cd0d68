package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cloister-vmm/cloister/observe"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/audit"
)

// Bounds of what comes with a plan, beside new code and data: these are as many as the VM has room for.
const (
	maxPlan  = 4 << 20   // the rest of it as JSON, bytes
	maxNames = 1 << 20   // all its names, bytes: they stand in the record, which has a bound (audit.MaxLine)
	maxWait  = time.Hour // Plan.Wait
	maxText  = 4 << 20   // one answer's worth of running text, bytes
)

// patchSlack is how much longer than Plan.Wait a client is left without an answer: hashing, the log, a slow disk.
const patchSlack = 30 * time.Second

// Headers of the answer to a patch.
const (
	headerHead = "Cloister-Log-Head"
	headerNote = "Cloister-Note"
)

// control adds the routes of patching to those of the control socket (docs/patching.md, "Over the control socket").
func (m *monitor) control(others http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", others)
	small := func(h http.HandlerFunc) http.Handler { return observe.LimitBody(0, h) }
	mux.Handle("GET /v1/patch", small(m.getPatch))
	mux.Handle("GET /v1/patch/text", small(m.getPatchText))
	mux.Handle("GET /v1/patch/log", small(m.getPatchLog))
	mux.HandleFunc("POST /v1/patch", m.postPatch)
	for _, path := range []string{"/v1/patch", "/v1/patch/text", "/v1/patch/log"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			observe.Fail(w, http.StatusMethodNotAllowed, path+" does not take that method")
		})
	}
	return mux
}

func (m *monitor) getPatch(w http.ResponseWriter, _ *http.Request) {
	s, err := m.patchState()
	if err != nil {
		observe.Fail(w, statusOf(err), err.Error())
		return
	}
	observe.Answer(w, http.StatusOK, s)
}

// statusOf is what an answer without the state has: what will never be is not found, the rest may come.
func statusOf(err error) int {
	if errors.Is(err, errNotPatchable) {
		return http.StatusNotFound
	}
	return http.StatusServiceUnavailable
}

// getPatchText gives bytes of the running text, and of nothing else that the guest has.
func (m *monitor) getPatchText(w http.ResponseWriter, r *http.Request) {
	s, err := m.patches.current()
	if err != nil {
		observe.Fail(w, statusOf(err), err.Error())
		return
	}
	addr, err := strconv.ParseUint(r.URL.Query().Get("addr"), 0, 64)
	n, err2 := strconv.ParseUint(r.URL.Query().Get("len"), 0, 64)
	if err := errors.Join(err, err2); err != nil || n == 0 || n > maxText {
		observe.Fail(w, http.StatusBadRequest, fmt.Sprintf("want addr=0x… and len=, 1 to %d", maxText))
		return
	}
	ok := addr >= s.SpareText.Start && addr < s.SpareText.End && n <= s.SpareText.End-addr
	for _, t := range s.Text {
		ok = ok || addr >= t.Start && addr < t.End && n <= t.End-addr
	}
	if !ok {
		observe.Fail(w, http.StatusForbidden, fmt.Sprintf("%d bytes at %#x are not of the program's text", n, addr))
		return
	}
	b := make([]byte, n)
	if _, err := guestMemory(m.guest).ReadAt(b, int64(addr)); err != nil {
		observe.Fail(w, http.StatusServiceUnavailable, fmt.Sprintf("read %d bytes at %#x: %v", n, addr, err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // the client is gone: there is nobody left to tell
}

func (m *monitor) getPatchLog(w http.ResponseWriter, _ *http.Request) {
	path, err := m.patchLog()
	if err != nil {
		observe.Fail(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	f, err := audit.Open(path)
	switch {
	case errors.Is(err, os.ErrNotExist): // nothing was logged yet, which is what an empty log says
		w.Header().Set("Content-Type", "application/x-ndjson")
		return
	case err != nil:
		observe.Fail(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Content-Length", strconv.FormatInt(f.Size(), 10))
	c := http.NewResponseController(w)
	for part := int64(maxText); ; {
		// A log has no bound, so each part has its time.
		if err := c.SetWriteDeadline(time.Now().Add(patchSlack)); err != nil {
			return // the connection is gone
		}
		if _, err := io.CopyN(w, f, part); err != nil {
			return // its end; or the client is gone
		}
	}
}

func (m *monitor) postPatch(w http.ResponseWriter, r *http.Request) {
	s, err := m.patches.current()
	if err != nil {
		observe.Fail(w, statusOf(err), err.Error())
		return
	}
	c := http.NewResponseController(w)
	if err := c.SetReadDeadline(time.Now().Add(patchSlack)); err != nil {
		return // the connection is gone
	}
	plan, status, err := readPlan(http.MaxBytesReader(w, r.Body, maxPlan+2*room(s.SpareText)+2*room(s.SpareData)))
	if err != nil {
		observe.Fail(w, status, err.Error())
		return
	}
	peer := observe.Peer(r)
	if peer == nil {
		observe.Fail(w, http.StatusForbidden, "who asks is not known")
		return
	}
	plan.Actor = fmt.Sprintf("uid %d pid %d", peer.Uid, peer.Pid)
	wait := plan.Wait + patchSlack
	if err := c.SetWriteDeadline(time.Now().Add(wait + patchSlack)); err != nil {
		return // the connection is gone
	}
	m.patches.asked(1)
	defer m.patches.asked(-1)
	type result struct {
		*made
		err error
	}
	done := make(chan result, 1)
	go func() { // it goes on when the client does not wait
		p, err := m.patch(*plan)
		done <- result{p, err}
	}()
	select {
	case p := <-done:
		answerPatch(w, p.made, p.err)
	case <-time.After(wait):
		observe.Fail(w, http.StatusGatewayTimeout, fmt.Sprintf("the patch is not finished after %v; its record will be in the log", wait))
	}
	_ = c.Flush() // this process may be about to end; if it fails, the client is gone
}

// room is how many bytes are left.
func room(s patch.Space) int64 { return int64(s.End - min(s.End, max(s.Start, s.Used))) }

func answerPatch(w http.ResponseWriter, p *made, err error) {
	switch {
	case errors.Is(err, errPatching):
		w.Header().Set("Retry-After", "1")
		observe.Fail(w, http.StatusServiceUnavailable, err.Error())
		return
	case err != nil:
		observe.Fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	if p.log != "" {
		w.Header().Set(headerHead, p.head.String())
	}
	for _, n := range p.notes {
		w.Header().Add(headerNote, oneLine(n))
	}
	status := http.StatusConflict
	if p.Outcome == patch.Committed || p.Outcome == patch.Checked {
		status = http.StatusOK
	}
	observe.Answer(w, status, p.Record)
}

// readPlan reads a plan, strictly: what it says beyond what is known here would be left out silently.
func readPlan(body io.Reader) (*patch.Plan, int, error) {
	p := new(patch.Plan)
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	err := d.Decode(p)
	if err == nil {
		if _, e := d.Token(); !errors.Is(e, io.EOF) {
			err = errors.New("something follows it")
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("a plan has at most %d bytes, for what is left of the VM's spare memory", tooLarge.Limit)
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("the plan: %w", err)
	}
	names := len(p.Name) + len(p.BuildID) + len(p.Digest)
	for i := range p.Sites {
		s := &p.Sites[i]
		names += len(s.Name) + len(s.Kind)
		if len(s.Old) > patch.MaxSite || len(s.New) > patch.MaxSite {
			return nil, http.StatusBadRequest, fmt.Errorf("the plan: site %.80q has more than %d bytes", s.Name, patch.MaxSite)
		}
	}
	switch {
	case len(p.Sites) > patch.MaxSites:
		err = fmt.Errorf("the plan has %d sites, at most %d", len(p.Sites), patch.MaxSites)
	case names > maxNames:
		err = fmt.Errorf("the plan: its names have %d bytes, at most %d", names, maxNames)
	case p.Wait < 0 || p.Wait > maxWait:
		err = fmt.Errorf("the plan waits %v, at most %v", p.Wait, maxWait)
	case p.StopLimit < 0 || p.StopLimit > maxWait:
		err = fmt.Errorf("the plan waits %v for a stop, at most %v", p.StopLimit, maxWait)
	}
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	p.Name = oneLine(p.Name)
	return p, 0, nil
}

// maxLine bounds what is shown of somebody else's words, characters.
const maxLine = 1000

// oneLine makes somebody else's words fit for a terminal and a log.
func oneLine(s string) string {
	r := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
	return strings.TrimSpace(string(r[:min(len(r), maxLine)]))
}
