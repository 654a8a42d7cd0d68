package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/sys/unix"
)

const hostHead = `cloister host apply --cpu LIST [--level run-time|max] [--dry-run] [--hold] [--strict] [--resctrl] [--json]
cloister host restore [--cpu LIST] [--json]
cloister host status [--json]

apply makes the CPUs quiet, as far as that is possible without a reboot; each value that it changes is in a
journal before it is changed. restore puts every one back, also after a crash; without --cpu, for all. status says who has
which CPUs.`

// Host is `cloister host`; it returns the exit status.
func Host(args []string) int {
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "apply":
		return hostApply(args)
	case "restore":
		return hostRestore(args)
	case "status":
		return hostStatus(args)
	case "-h", "-help", "--help", "help":
		fmt.Println(hostHead)
		return 0
	}
	return session.Failf("host %q: choose apply, restore or status", verb)
}

// parseHost reads the options of one of host's verbs; done is true when there is nothing left to do.
func parseHost(f *flag.FlagSet, args []string) (status int, done bool) {
	rest, err := parseMixed(f, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flagUsage(os.Stdout, hostHead, f)
		return 0, true
	case err != nil:
	case len(rest) > 0:
		err = fmt.Errorf("%s takes no arguments, not %q", f.Name(), rest[0])
	default:
		err = refuseEmpty(f)
	}
	if err != nil {
		return session.Failf("%v", err), true
	}
	return 0, false
}

func hostApply(args []string) int {
	f := newFlags("host apply")
	r := host.Request{}
	cpuFlag(f, &r.CPUs, "the `CPUS` to make quiet, such as 2-3")
	level := f.String("level", string(host.RunTime), "`run-time|max`: max also changes what the other CPUs will notice")
	dry := f.Bool("dry-run", false, "print the plan and change nothing")
	all := f.Bool("all", false, "with --dry-run: a line for every thread too")
	strict := f.Bool("strict", false, "what the kernel refuses is an error, and undoes everything")
	asJSON := f.Bool("json", false, "print JSON")
	hold := f.Bool("hold", false, "stay, with /dev/cpu_dma_latency held open, until Ctrl-C; then restore")
	f.BoolVar(&r.Cache, "resctrl", false, "give the CPUs half of the last-level cache's ways for themselves")
	if status, done := parseHost(f, args); done {
		return status
	}
	var err error
	if r.Level, err = host.ParseLevel(*level); err == nil && len(r.CPUs) == 0 {
		err = errors.New("host apply: which CPUs? give --cpu LIST")
	}
	switch {
	case err != nil:
	case *all && !*dry:
		err = errors.New("host apply: --all is for the plan: give --dry-run too, or leave it out")
	case *dry && (*hold || *strict):
		err = errors.New("host apply: --dry-run changes nothing: leave --hold and --strict out")
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	if *dry {
		p, err := host.Make(host.Live{Root: "/"}, host.JournalDir, r)
		if err == nil {
			err = show(*asJSON, p.Encode, func(w io.Writer) error { return p.WriteText(w, *all) })
		}
		if err != nil {
			return session.Failf("%v", err)
		}
		return 0
	}
	if os.Geteuid() != 0 {
		return session.Failf("host apply: it writes to /proc and /sys: run as root (--dry-run shows what it would do)")
	}
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()
	a := &host.Applier{Strict: *strict, Stop: stop.Done(), Waiting: waiting}
	if *hold {
		r.PID = os.Getpid() // if it is killed everybody can see that its claim is left
	}
	res, err := applyLeased(a, r)
	if err != nil {
		return session.Failf("%v", err)
	}
	a.Stop = nil // from here on it ends the holding, after which the journal is needed once more
	now, err := after(live, res, r.Level)
	if err == nil {
		err = show(*asJSON, now.Encode, now.WriteText)
	}
	status := 0
	if err != nil {
		status = session.Failf("%v", err)
	}
	if *hold { // whatever became of the report: who asked for it to be given back gets that
		status = max(status, holdUntil(stop.Done(), a, res.Owner, *asJSON))
	}
	return status
}

// waiting says why nothing happens.
func waiting(file string) {
	fmt.Fprintf(os.Stderr, "cloister: waiting for %s, which another process has locked\n", file)
}

// holdUntil keeps every CPU awake until it is told to stop, and then gives back what the owner was given.
func holdUntil(stop <-chan struct{}, a *host.Applier, owner string, asJSON bool) int {
	status := 0
	latency, err := holdLatency()
	if err != nil {
		status = session.Failf("%v", err) // what was applied stands
	}
	<-stop
	if latency != nil {
		if err := latency.Close(); err != nil {
			status = session.Failf("%v", err)
		}
	}
	return max(status, giveBack(a, func(c host.Claim) bool { return c.Owner == owner }, asJSON))
}

// applyLeased holds the cores' leases while it applies: threads are not pulled from under a running VM.
func applyLeased(a *host.Applier, r host.Request) (*host.Result, error) {
	p, err := host.Make(live, host.JournalDir, r)
	if err != nil {
		return nil, err
	}
	release, err := leaseAll(append(slices.Clone(r.CPUs), p.Siblings()...), "cloister host apply")
	if err != nil {
		return nil, err
	}
	defer release()
	return a.Apply(r)
}

// leaseAll takes the leases of all these cores that exist, or of none; those that do not are Apply's to refuse.
func leaseAll(cpus []int, who string) (release func(), err error) {
	dir, err := session.RunDir()
	if err != nil {
		return nil, err
	}
	var leases []*cores.Lease
	release = func() {
		for _, l := range leases {
			if err := l.Release(); err != nil {
				session.Failf("%v", err)
			}
		}
	}
	for _, c := range cpus {
		l, err := cores.Take(dir, c, fmt.Sprintf("%s (process %d)", who, os.Getpid()))
		if err != nil {
			release()
			return nil, err
		}
		leases = append(leases, l)
	}
	return release, nil
}

// holdLatency keeps every CPU out of its sleep states for as long as the file is open
// (Documentation/power/pm_qos_interface.rst).
func holdLatency() (*os.File, error) {
	f, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("hold the latency of sleep states: %w", err)
	}
	if _, err := f.Write([]byte{0, 0, 0, 0}); err != nil {
		return nil, errors.Join(fmt.Errorf("hold the latency of sleep states: %w", err), f.Close())
	}
	return f, nil
}

func hostRestore(args []string) int {
	f := newFlags("host restore")
	var cpus []int
	cpuFlag(f, &cpus, "the `CPUS` to give back (default: all that were taken)")
	owner := f.String("owner", "", "give back what this `owner` was given, as host status names it, even while the core is in use")
	asJSON := f.Bool("json", false, "print JSON")
	if status, done := parseHost(f, args); done {
		return status
	}
	if *owner != "" && len(cpus) > 0 {
		return session.Failf("host restore: --owner gives back all of an owner's: leave --cpu out")
	}
	if present, err := host.CPUs(live, "sys/devices/system/cpu/present"); err == nil {
		if err := cores.Exist(present, cpus...); err != nil {
			return session.Failf("%v", err)
		}
	}
	a := &host.Applier{Waiting: waiting}
	if *owner != "" {
		var t tally
		list, err := a.RestoreOwner(*owner)
		for _, res := range list {
			err = errors.Join(err, t.report(res, *asJSON))
		}
		return t.status(err, *asJSON)
	}
	return giveBack(a, func(c host.Claim) bool { return len(cpus) == 0 || len(cores.Common(c.CPUs, cpus)) > 0 }, *asJSON)
}

// giveBack restores what the owners of these claims were given, says what it left, and returns the status.
func giveBack(a *host.Applier, which func(host.Claim) bool, asJSON bool) int {
	var t tally
	err := restoreLeased(a, which, func(res *host.Result) error { return t.report(res, asJSON) })
	return t.status(err, asJSON)
}

// tally is what has been given back.
type tally struct{ results, foreign int }

func (t *tally) report(res *host.Result, asJSON bool) error {
	t.results++
	t.foreign += len(res.Foreign)
	return show(asJSON, res.Encode, func(w io.Writer) error { return res.WriteText(w, "given back") })
}

// status is 125 when anything was left as it should not be.
func (t *tally) status(err error, asJSON bool) int {
	switch {
	case err != nil:
		return session.Failf("%v", err)
	case t.foreign > 0:
		return session.Failf("%d settings were changed by somebody else since and are left as they are", t.foreign)
	case t.results == 0 && !asJSON:
		fmt.Println("nothing to give back")
	}
	return 0
}

// restoreLeased gives back claims, each with the leases of its cores, which it holds until all is put back and reported: a
// core is not taken from under a running VM, and nobody gets it who would find it half restored.
func restoreLeased(a *host.Applier, which func(host.Claim) bool, report func(*host.Result) error) error {
	claims, err := a.Claims()
	if err != nil || len(claims) == 0 {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("host restore: it writes to /proc and /sys: run as root")
	}
	for _, c := range claims {
		if which(c) {
			err = errors.Join(err, restoreOne(a, c, report))
		}
	}
	return err
}

func restoreOne(a *host.Applier, c host.Claim, report func(*host.Result) error) error {
	release, err := leaseAll(c.CPUs, "cloister host restore")
	if err != nil {
		list := cores.Format(c.CPUs)
		return fmt.Errorf("CPUs %s are not given back: %w; then cloister host restore --cpu %s", list, err, list)
	}
	defer release()
	back, err := a.RestoreOwner(c.Owner)
	for _, res := range back {
		err = errors.Join(err, report(res))
	}
	return err
}

// claimed is a line of `host status`.
type claimed struct {
	host.Claim
	Dead bool `json:"dead"` // its process has ended without giving back
}

func hostStatus(args []string) int {
	f := newFlags("host status")
	asJSON := f.Bool("json", false, "print JSON")
	if status, done := parseHost(f, args); done {
		return status
	}
	a := &host.Applier{}
	claims, err := a.Claims()
	if err != nil {
		return session.Failf("%v", err)
	}
	list := []claimed{}
	for _, c := range claims {
		list = append(list, claimed{c, a.Dead(c)})
	}
	err = show(*asJSON, func(w io.Writer) error { return json.NewEncoder(w).Encode(list) }, func(w io.Writer) (err error) {
		if len(list) == 0 {
			_, err = fmt.Fprintln(w, "no CPU is isolated by Cloister")
		}
		for _, c := range list {
			end := ""
			if c.Dead {
				end = fmt.Sprintf(": it has ended; give them back with cloister host restore --cpu %s", cores.Format(c.CPUs))
			}
			if _, e := fmt.Fprintf(w, "CPUs %s: %s%s\n", cores.Format(c.CPUs), c.Claim, end); e != nil {
				err = e
			}
		}
		return err
	})
	if err != nil {
		return session.Failf("%v", err)
	}
	return 0
}

// show prints one of the two forms to standard output.
func show(asJSON bool, js, text func(io.Writer) error) error {
	if asJSON {
		return js(os.Stdout)
	}
	return text(os.Stdout)
}
