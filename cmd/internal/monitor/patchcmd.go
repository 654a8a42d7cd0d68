package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/observe"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/build"
	"golang.org/x/sys/unix"
)

const patchHead = `cloister patch VM --list                          what can be patched, and what was
cloister patch VM --replace FUNC=OBJ[:SYMBOL]     new bodies for functions; may be repeated
cloister patch VM --site NAME=VALUE               other values for declared sites; may be repeated
cloister patch VM --apply FILE.cpatch             a bundle, all of it or nothing
cloister patch VM --revert N                      take patch N back
cloister patch VM --log                           what became of each patch
cloister patch --verify-log [VM|FILE] [--head HASH]

Changes the code of a running program: every vCPU is stopped, the change made, and each serialised on its own core
before any goes on. It waits for a safe point of the program, if that declares any: no pass of its loop then runs
old and new code. More than one place changes at a safe point only.

Exit status: 0 done; 1 the VM did not take it and nothing was changed, or the log is not right; 125 anything else.`

// StatusNotPatched is the status of `cloister patch` when the VM answered and was not changed, and of a log that is wrong.
const StatusNotPatched = 1

// patchOptions are those of `cloister patch`.
type patchOptions struct {
	list, log, verify, dryRun, now, json bool
	replace, site                        []string
	apply, bundle, head, program, revert string
	number                               uint64 // in revert; 0: there is none
	timeout                              time.Duration
	args                                 []string
}

// Patch is `cloister patch`; it returns the exit status.
func Patch(args []string) int {
	o, status, done := parsePatch(args)
	if done {
		return status
	}
	if o.verify {
		return o.verifyLogs()
	}
	vm, err := findVM(o.args[0])
	if err != nil && o.log { // the log outlives the VM
		if status, ok := o.showOldLog(o.args[0]); ok {
			return status
		}
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	p := &patchClient{o: o, vm: vm, http: observe.NewClient(vm.dir)}
	switch {
	case o.log:
		status, err = p.log()
	case o.list:
		status, err = p.list()
	default:
		status, err = p.change()
	}
	if err != nil {
		return session.Failf("%v", p.said(err))
	}
	return status
}

func parsePatch(args []string) (o *patchOptions, status int, done bool) {
	o = &patchOptions{}
	f := newFlags("patch")
	f.BoolVar(&o.list, "list", false, "show functions and sites that can be patched, and the patches that stand")
	more := func(to *[]string) func(string) error {
		return func(s string) error { *to = append(*to, s); return nil }
	}
	f.Func("replace", "give a function the body of a symbol in an object, `FUNC=OBJ[:SYMBOL]`; may be repeated", more(&o.replace))
	f.Func("site", "set a declared site, `NAME=VALUE`, such as rate.limit=0x2a or trace=on; may be repeated", more(&o.site))
	f.StringVar(&o.apply, "apply", "", "apply the bundle in `FILE`")
	f.StringVar(&o.bundle, "bundle", "", "write what is asked for as a bundle to `FILE`, and change nothing")
	f.StringVar(&o.revert, "revert", "", "take patch `N` back")
	f.BoolVar(&o.dryRun, "dry-run", false, "check all that can be checked without a stop, and change nothing")
	f.DurationVar(&o.timeout, "timeout", patch.DefaultWait, "how long to try, `time` such as 500ms: threads may be far from a safe point, or stand where they must not")
	f.BoolVar(&o.now, "now", false, "do not wait for a safe point: a pass of the program's loop may run old and new code")
	f.StringVar(&o.program, "program", "", "`FILE` that the VM was started from, if it is no longer at its place")
	f.BoolVar(&o.log, "log", false, "show the log")
	f.BoolVar(&o.verify, "verify-log", false, "check the chain of a log: of a VM by name, running or not, of a file, or of all VMs that were patched")
	f.StringVar(&o.head, "head", "", "with --verify-log: a `HASH` that the log must have, so that its end cannot be cut off unseen")
	f.BoolVar(&o.json, "json", false, "print JSON")
	var err error
	o.args, err = parseMixed(f, args)
	if errors.Is(err, flag.ErrHelp) {
		flagUsage(os.Stdout, patchHead, f)
		return o, 0, true
	}
	if err == nil {
		err = refuseEmptyPatch(f)
	}
	if err == nil {
		err = o.check(f)
	}
	if err != nil {
		return o, session.Failf("%v", err), true
	}
	return o, 0, false
}

// refuseEmptyPatch is refuseEmpty for an option that was given and says nothing; lists have their own check.
func refuseEmptyPatch(f *flag.FlagSet) (err error) {
	f.Visit(func(x *flag.Flag) {
		if v := x.Value.String(); err == nil && v == "" && x.Name != "replace" && x.Name != "site" {
			err = fmt.Errorf("--%s is given and says nothing: leave it out, or give a value", x.Name)
		}
	})
	return err
}

// check finds what does not go together; it reads no file.
func (o *patchOptions) check(f *flag.FlagSet) error {
	given := map[string]bool{}
	f.Visit(func(x *flag.Flag) { given[x.Name] = true })
	var acts []string
	for _, name := range []string{"list", "log", "verify-log", "revert", "apply"} {
		if given[name] {
			acts = append(acts, "--"+name)
		}
	}
	if given["replace"] || given["site"] {
		acts = append(acts, "--replace or --site")
	}
	changes := given["replace"] || given["site"] || given["apply"]
	switch {
	case len(acts) == 0:
		return errors.New("patch: say what to do: --list, --replace, --site, --apply, --revert, --log or --verify-log; `cloister patch -h` shows them")
	case len(acts) > 1:
		return fmt.Errorf("patch: %s exclude each other: choose one; a bundle (--bundle) can hold several changes", strings.Join(acts, " and "))
	case given["head"] && !o.verify:
		return errors.New("--head is for --verify-log")
	case o.bundle != "" && !changes:
		return errors.New("--bundle needs something to write: --replace or --site")
	case o.bundle != "" && (o.dryRun || given["timeout"]):
		return errors.New("--bundle changes nothing in the VM: leave out --dry-run and --timeout")
	case o.now && (o.bundle != "" || !changes && !given["revert"]):
		return errors.New("--now is for a change: --replace, --site, --apply or --revert")
	case o.dryRun && !changes && !given["revert"]:
		return errors.New("--dry-run needs a change: --replace, --site, --apply or --revert")
	case given["timeout"] && !changes && !given["revert"]:
		return errors.New("--timeout is for a change: --replace, --site, --apply or --revert")
	case o.timeout <= 0 || o.timeout > maxWait:
		return fmt.Errorf("--timeout %v: choose more than 0, at most %v", o.timeout, maxWait)
	case o.verify && len(o.args) <= 1:
		return nil
	case o.verify:
		return fmt.Errorf("--verify-log takes one VM or file, not %q", o.args)
	case len(o.args) == 0:
		return errors.New("patch: which VM? `cloister ps` lists them")
	case len(o.args) > 1:
		return fmt.Errorf("patch: one VM at a time, not %q", o.args)
	case o.args[0] == "":
		return errors.New("patch: the VM's name is empty: name one, `cloister ps` lists them")
	}
	if given["revert"] {
		var err error
		if o.number, err = strconv.ParseUint(o.revert, 10, 64); err != nil || o.number == 0 {
			return fmt.Errorf("--revert %.80q: no patch has such a number: --list shows those that stand", o.revert)
		}
	}
	for _, r := range o.replace {
		if _, _, _, err := build.ParseReplace(r); err != nil {
			return err
		}
	}
	for _, s := range o.site {
		if _, err := build.ParseSet(s); err != nil {
			return err
		}
	}
	return nil
}

// patchClient patches one VM.
type patchClient struct {
	o    *patchOptions
	vm   running
	http *observe.Client
}

// monitorTime is how long a monitor may be away: that of a VM that begins comes last, that of a VM that ends goes first.
const monitorTime = 2 * time.Second

// said makes what went wrong on the socket an answer to who asked.
func (p *patchClient) said(err error) error {
	if errors.Is(err, observe.ErrNoMonitor) {
		if !session.EngineLives(p.vm.dir) {
			return fmt.Errorf("VM %s has just ended", p.vm.name)
		}
		return fmt.Errorf("VM %s has no monitor: only with one can it be patched; start it anew when that is possible", p.vm.name)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("VM %s: its monitor does not answer: try again, and look at --log", p.vm.name)
	}
	return err
}

// ask sends a request that may be sent again.
func (p *patchClient) ask(ctx context.Context, path string) (*http.Response, error) {
	for end := time.Now().Add(monitorTime); ; time.Sleep(20 * time.Millisecond) {
		r, err := p.http.Do(ctx, http.MethodGet, path, nil)
		if !errors.Is(err, observe.ErrNoMonitor) || time.Now().After(end) || !session.EngineLives(p.vm.dir) {
			return r, err
		}
	}
}

// get asks for what is no patch.
func (p *patchClient) get(path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patchSlack)
	defer cancel()
	r, err := p.ask(ctx, path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := observe.ReadAnswer(r, limit)
	if err != nil {
		return nil, err
	}
	return b, p.failed(r, b)
}

// failed is the error of an answer that is not 2xx.
func (p *patchClient) failed(r *http.Response, b []byte) error {
	switch {
	case r.StatusCode/100 == 2:
		return nil
	case r.StatusCode == http.StatusNotFound && !bytes.HasPrefix(b, []byte("{")): // the route is not there
		return fmt.Errorf("VM %s cannot be patched: it runs natively, or was started by another cloister than this one", p.vm.name)
	}
	return fmt.Errorf("VM %s: %s", p.vm.name, observe.Failure(b))
}

// maxState bounds the state of a VM, bytes of JSON: patches that stand have all their sites in it.
const maxState = 64 << 20

func (p *patchClient) state() (s patch.State, err error) {
	b, err := p.get("/v1/patch", maxState)
	if err == nil {
		if err = json.Unmarshal(b, &s); err != nil {
			err = fmt.Errorf("VM %s: the answer of the control socket: %w", p.vm.name, err)
		}
	}
	return s, err
}

// ReadAt gives the running text at the guest's addresses: what build.Open reads it through.
func (p *patchClient) ReadAt(b []byte, at int64) (n int, err error) {
	for n < len(b) {
		k := min(len(b)-n, maxText)
		got, err := p.get(fmt.Sprintf("/v1/patch/text?addr=%#x&len=%d", at+int64(n), k), maxText)
		if err != nil {
			return n, err
		}
		if len(got) != k {
			return n, io.ErrUnexpectedEOF
		}
		n += copy(b[n:], got)
	}
	return n, nil
}

// open gives the program as it runs, beside its file.
func (p *patchClient) open() (prog *build.Program, s patch.State, done func() error, err error) {
	if s, err = p.state(); err != nil {
		return nil, s, nil, err
	}
	file, size, done, err := p.file(&s)
	if err != nil {
		return nil, s, nil, err
	}
	if prog, err = build.Open(file, size, s, p); err != nil {
		return nil, s, nil, errors.Join(err, done())
	}
	return prog, s, done, nil
}

// file is what the VM was started from.
func (p *patchClient) file(s *patch.State) (io.ReaderAt, int64, func() error, error) {
	if strings.HasPrefix(s.Program, "@") && p.o.program == "" {
		vm, err := p.vm.status(context.Background())
		if err == nil && vm == nil {
			err = fmt.Errorf("VM %s has just ended", p.vm.name)
		}
		if err != nil {
			return nil, 0, nil, err
		}
		b, err := workload.ELF(s.Program, vm.Args[min(1, len(vm.Args)):], s.TSCHz)
		if err != nil {
			return nil, 0, nil, err
		}
		return bytes.NewReader(b), int64(len(b)), func() error { return nil }, nil
	}
	name := s.Program
	if p.o.program != "" {
		name = p.o.program
	}
	f, size, err := openRegular(name)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("the program of VM %s: %w: give the file that it was started from, --program FILE", p.vm.name, err)
	}
	return f, size, f.Close, nil
}

// bundleOf is what the user asks for.
func (p *patchClient) bundleOf() (b *build.Bundle, err error) {
	if p.o.apply != "" {
		f, _, err := openRegular(p.o.apply)
		if err != nil {
			return nil, fmt.Errorf("--apply: %w: give a file that --bundle wrote", err)
		}
		b, err = build.Decode(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("--apply %s: %w", p.o.apply, err)
		}
		return b, nil
	}
	b = &build.Bundle{}
	for _, arg := range p.o.replace {
		r := build.Replace{}
		if r.Function, r.File, r.Symbol, err = build.ParseReplace(arg); err != nil {
			return nil, err
		}
		f, size, err := openRegular(r.File)
		if err != nil {
			return nil, fmt.Errorf("--replace %s: %w: give the object, as gcc -c makes it", r.Function, err)
		}
		if size > build.MaxObject {
			err = fmt.Errorf("%s has %d bytes, at most %d: compile the new function alone", r.File, size, build.MaxObject)
		}
		if err == nil {
			r.Object = make([]byte, size)
			_, err = io.ReadFull(f, r.Object)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("--replace %s: %w", r.Function, err)
		}
		b.Replace = append(b.Replace, r)
	}
	for _, arg := range p.o.site {
		s, err := build.ParseSet(arg)
		if err != nil {
			return nil, err
		}
		b.Set = append(b.Set, s)
	}
	return b, nil
}

func openRegular(name string) (*os.File, int64, error) {
	st, err := os.Stat(name) // first: to open a device can be to use it
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a FIFO by now, which must not wait for its writer
	if err != nil {
		return nil, 0, err
	}
	st, err = f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// change makes a patch, or what stands in its place: a check, or a bundle.
func (p *patchClient) change() (int, error) {
	plan, notes, done, err := p.plan()
	if err != nil || done {
		return 0, err
	}
	plan.Wait, plan.DryRun = p.o.timeout, p.o.dryRun
	body, err := json.Marshal(plan)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), plan.Wait+3*patchSlack)
	defer cancel()
	r, err := p.http.Do(ctx, http.MethodPost, "/v1/patch", body)
	if errors.Is(err, observe.ErrNoMonitor) { // it was there a moment ago
		return 0, fmt.Errorf("VM %s: its monitor has ended while it was asked: what became of the patch stands in the log, cloister patch %s --log", p.vm.name, p.vm.name)
	}
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	b, err := observe.ReadAnswer(r, maxState)
	if err != nil {
		return 0, err
	}
	v := patchView{Head: r.Header.Get(headerHead), Notes: append(notes, r.Header.Values(headerNote)...)}
	if r.StatusCode != http.StatusOK && r.StatusCode != http.StatusConflict {
		return 0, p.failed(r, b)
	}
	if err := json.Unmarshal(b, &v.Record); err != nil {
		return 0, fmt.Errorf("VM %s: the answer of the control socket: %w", p.vm.name, err)
	}
	if err := show(p.o.json, v.encode, v.write); err != nil {
		return 0, err
	}
	switch v.Record.Outcome {
	case patch.Committed, patch.Checked:
		return 0, nil
	case patch.Dead:
		return session.StatusCloister, nil
	}
	return StatusNotPatched, nil
}

// plan makes the plan; done says that there was none to be made.
func (p *patchClient) plan() (plan *patch.Plan, notes []string, done bool, err error) {
	if p.o.number != 0 {
		s, err := p.state()
		if err != nil {
			return nil, nil, false, err
		}
		for _, a := range s.Applied {
			if a.Number == p.o.number {
				if p.o.now && len(a.Sites) > 1 {
					return nil, nil, false, p.tooMany(len(a.Sites))
				}
				return &patch.Plan{SafePoint: s.SafePoints && !p.o.now, Name: fmt.Sprintf("revert %d (%s)", a.Number, a.Name), BuildID: s.BuildID, Revert: a.Number}, nil, false, nil
			}
		}
		return nil, nil, false, fmt.Errorf("VM %s: no patch %d stands: cloister patch %s --list shows those that do", p.vm.name, p.o.number, p.vm.name)
	}
	b, err := p.bundleOf() // first: what is wrong with it needs no VM
	if err != nil {
		return nil, nil, false, err
	}
	prog, s, closeFile, err := p.open()
	if err != nil {
		return nil, nil, false, err
	}
	m, err := prog.Plan(b)
	switch {
	case err != nil:
	case p.o.now && m.Plan.SafePoint:
		err = p.tooMany(len(m.Plan.Sites))
	default:
		m.Plan.SafePoint = s.SafePoints && !p.o.now
	}
	if err == nil && p.o.bundle != "" {
		b.BuildID = prog.BuildID()
		err = p.writeBundle(b)
		done = true
	}
	if err = errors.Join(err, closeFile()); err != nil {
		return nil, nil, false, err
	}
	return &m.Plan, m.Notes, done, nil
}

func (p *patchClient) tooMany(n int) error {
	return fmt.Errorf("VM %s: %d places change together, which only a safe point makes one change: leave out --now", p.vm.name, n)
}

// writeBundle writes what was checked against the VM, and can be applied to it later, or to another that runs the same program.
func (p *patchClient) writeBundle(b *build.Bundle) error {
	out, err := b.Encode()
	if err != nil {
		return err
	}
	if err := replace(p.o.bundle, func(w io.Writer) error { _, err := w.Write(out); return err }); err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	if !p.o.json {
		_, err = fmt.Printf("%s: %d changes for build id %s, checked against VM %s; nothing was patched\n", p.o.bundle, len(b.Replace)+len(b.Set)+len(b.Raw), b.BuildID, p.vm.name)
	}
	return err
}

// list shows what can be patched.
func (p *patchClient) list() (int, error) {
	prog, s, closeFile, err := p.open()
	if err != nil {
		return 0, err
	}
	v := listView{State: s, Can: prog.List()}
	return 0, errors.Join(closeFile(), show(p.o.json, v.encode, func(w io.Writer) error { return v.write(w, p.vm.name) }))
}
