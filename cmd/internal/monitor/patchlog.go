package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/observe"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/audit"
)

// logSource is a log that can be read once.
type logSource struct {
	name string // for messages
	open func() (io.ReadCloser, error)
}

func fileLog(path string) logSource {
	return logSource{path, func() (io.ReadCloser, error) { return audit.Open(path) }}
}

// givenLog is a log whose path somebody gave.
func givenLog(path string) logSource {
	return logSource{path, func() (io.ReadCloser, error) {
		r, err := audit.Open(path)
		if err != nil {
			return nil, fmt.Errorf("%w: give a VM's name, or the path of a log", err)
		}
		return r, nil
	}}
}

// socketLog is the log of a running VM, wherever it is.
func socketLog(p *patchClient) logSource {
	return logSource{"of VM " + p.vm.name, func() (io.ReadCloser, error) {
		ctx, cancel := context.WithCancel(context.Background())
		late := time.AfterFunc(patchSlack, cancel) // for its beginning; a log has no bound
		r, err := p.ask(ctx, "/v1/patch/log")
		if !late.Stop() {
			err = errors.Join(context.DeadlineExceeded, err)
		}
		if err != nil {
			cancel()
			return nil, p.said(err)
		}
		if r.StatusCode == http.StatusOK {
			return &canceled{r.Body, cancel}, nil
		}
		defer cancel()
		b, err := observe.ReadAnswer(r, maxText)
		if err == nil {
			err = p.failed(r, b)
		}
		return nil, errors.Join(err, r.Body.Close())
	}}
}

// canceled is an answer whose request ends with it.
type canceled struct {
	io.ReadCloser
	cancel func()
}

func (c *canceled) Close() error {
	c.cancel()
	return c.ReadCloser.Close()
}

// log is --log of a VM that runs.
func (p *patchClient) log() (int, error) { return p.o.showLog(socketLog(p)) }

// showOldLog is --log of a VM that does not run; ok is false when it has none.
func (o *patchOptions) showOldLog(name string) (status int, ok bool) {
	path, err := oldLog(name)
	if err != nil {
		return 0, false
	}
	if status, err = o.showLog(fileLog(path)); err != nil {
		return session.Failf("%v", err), true
	}
	return status, true
}

// oldLog is the path of the log of VMs of that name, if there is one.
func oldLog(name string) (string, error) {
	if name == "" || strings.Contains(name, "/") {
		return "", os.ErrNotExist
	}
	path, err := session.PatchLog(name)
	if err == nil {
		_, err = os.Stat(path)
	}
	return path, err
}

// showLog prints a log, up to the first line that is wrong; then it says what is wrong.
func (o *patchOptions) showLog(l logSource) (int, error) {
	r, err := l.open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if o.json {
		_, err := io.Copy(os.Stdout, r)
		return 0, err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	run, lines := "", 0
	var odd error
	sum, err := audit.Verify(r, audit.Hash{}, func(line audit.Line) {
		rec, err := line.Decode()
		if err != nil {
			odd = errors.Join(odd, err)
			return
		}
		if now := rec.VM + " " + rec.Started; now != run {
			if run != "" {
				fmt.Fprintln(t)
			}
			run = now
			fmt.Fprintf(t, "VM %s, started %s\n", oneLine(rec.VM), oneLine(rec.Started))
			fmt.Fprintln(t, "PATCH\tTIME\tOUTCOME\tWHO\tLONGEST PAUSE\tWHAT")
		}
		lines++
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", rec.Number, when(rec.Time), oneLine(rec.Outcome), oneLine(rec.Actor), micro(longestPause(&rec)), whatAndWhy(&rec))
	})
	if e := errors.Join(t.Flush(), odd); e != nil {
		return 0, e
	}
	var fault *audit.Fault
	switch {
	case errors.As(err, &fault):
		session.Failf("patch log %s: %v", l.name, fault)
		return StatusNotPatched, nil
	case err != nil:
		return 0, fmt.Errorf("patch log %s: %w", l.name, err)
	}
	if lines == 0 {
		fmt.Println("no patch is logged")
		return 0, nil
	}
	_, err = fmt.Printf("\nthe chain is whole: %d lines, head %s\n", sum.Lines, sum.Head)
	return 0, err
}

// when is a time to the millisecond, as it was written.
func when(s string) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return oneLine(s)
	}
	return t.UTC().Format("2006-01-02 15:04:05.000")
}

func longestPause(r *patch.Record) (longest *uint64) {
	for i := range r.VCPUs {
		if ns := timesOf(r, &r.VCPUs[i]).pause; ns != nil && (longest == nil || *ns > *longest) {
			longest = ns
		}
	}
	return longest
}

func whatAndWhy(r *patch.Record) string {
	s := oneLine(r.Name)
	if r.Reason != "" {
		s += ": " + oneLine(r.Reason)
	}
	return s
}

// verdict on one log, as --json has it.
type verdict struct {
	Log   string `json:"log"`
	OK    bool   `json:"ok"`
	Lines int    `json:"lines"` // of a log that is not right: up to the first wrong one
	Head  string `json:"head"`
	Torn  []int  `json:"torn"` // lines that a crash tore, and that are chained in
	Line  int    `json:"line,omitempty"`
	Kind  string `json:"kind,omitempty"`
	Why   string `json:"why,omitempty"`
}

// verifyLogs is --verify-log.
func (o *patchOptions) verifyLogs() int {
	var head audit.Hash
	if o.head != "" {
		var err error
		if head, err = audit.ParseHash(o.head); err != nil {
			return session.Failf("--head: %v", err)
		}
	}
	list, err := o.logs()
	if err == nil && o.head != "" && len(list) != 1 {
		err = errors.New("--head is of one log: name the VM, or the file")
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	status := 0
	all := []verdict{}
	for _, l := range list {
		v, err := verifyLog(l, head)
		switch {
		case err != nil:
			return session.Failf("%v", err)
		case o.json:
		case v.OK:
			err = v.write(os.Stdout, o.head != "")
		default:
			session.Failf("patch log %s: line %d: %s: %s", v.Log, v.Line, v.Kind, v.Why)
		}
		if err != nil {
			return session.Failf("%v", err)
		}
		if all = append(all, v); !v.OK {
			status = StatusNotPatched
		}
	}
	if o.json {
		err = encodeIndented(os.Stdout, all)
	} else if len(list) == 0 {
		_, err = fmt.Println("there is no patch log: no VM was ever patched")
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	return status
}

// logs finds what is to be verified.
func (o *patchOptions) logs() ([]logSource, error) {
	if len(o.args) == 0 {
		any, err := session.PatchLog("x")
		if err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(quoteGlob(filepath.Dir(any)), "*"+session.PatchSuffix))
		if err != nil {
			return nil, err
		}
		slices.Sort(files)
		var list []logSource
		for _, f := range files {
			list = append(list, fileLog(f))
		}
		return list, nil
	}
	name := o.args[0]
	if strings.Contains(name, "/") {
		return []logSource{givenLog(name)}, nil
	}
	vm, missing := findVM(name)
	if missing == nil {
		return []logSource{socketLog(&patchClient{o: o, vm: vm, http: observe.NewClient(vm.dir)})}, nil
	}
	if path, err := oldLog(name); err == nil {
		return []logSource{fileLog(path)}, nil
	}
	if _, err := os.Stat(name); err == nil && name != "" {
		return []logSource{givenLog(name)}, nil
	}
	return nil, fmt.Errorf("%q: no VM of that name was ever patched, and there is no such file: give a VM's name, or the path of a log", name)
}

// quoteGlob takes a path's own wildcards literally.
func quoteGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

func verifyLog(l logSource, head audit.Hash) (v verdict, err error) {
	r, err := l.open()
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	s, err := audit.Verify(r, head, nil)
	v = verdict{Log: l.name, OK: err == nil, Lines: s.Lines, Torn: s.Torn}
	if v.Torn == nil {
		v.Torn = []int{}
	}
	if s.Head != (audit.Hash{}) {
		v.Head = s.Head.String()
	}
	var f *audit.Fault
	if errors.As(err, &f) {
		v.Line, v.Kind, v.Why = f.Line, string(f.Kind), f.Why
		return v, nil
	}
	if err != nil {
		err = fmt.Errorf("patch log %s: %w", l.name, err)
	}
	return v, err
}

func (v *verdict) write(w io.Writer, asked bool) error {
	text := fmt.Sprintf("patch log %s: %d lines, the chain is whole, head %s", v.Log, v.Lines, v.Head)
	if v.Lines == 0 {
		text = fmt.Sprintf("patch log %s: empty", v.Log)
	}
	if asked {
		text += "; it has the hash that was given"
	}
	if len(v.Torn) > 0 {
		var lines []string
		for _, n := range v.Torn {
			lines = append(lines, strconv.Itoa(n))
		}
		text += "; torn by a crash and chained in: line " + strings.Join(lines, ", ")
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
