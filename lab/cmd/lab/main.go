// Lab runs Go tests, or a shell, in an emulated machine with hardware-style KVM.
//
//	lab [flags] [packages]
//
// Exit status: 0 all passed, 1 a test failed, 2 the lab failed, 3 the machine
// panicked or hung, 4 this machine cannot have the emulator or a package (with
// -optional, 0); after -shell, the shell's. docs/lab.md tells the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
	"github.com/cloister-vmm/cloister/lab"
)

func main() {
	os.Exit(run())
}

func run() int {
	var o lab.Options
	var names []string
	for _, m := range lab.Machines() {
		names = append(names, m.Name)
	}
	parent := os.Getppid()
	f := flag.NewFlagSet("lab", flag.ExitOnError)
	name := f.String("machine", "svm", "machine: "+strings.Join(names, ", "))
	f.StringVar(&o.Run, "run", "", "run only tests that match `regexp`")
	f.Func("only", "run in `dir=regexp` only tests that match regexp; may be repeated", func(s string) error {
		dir, re, ok := strings.Cut(s, "=")
		if !ok || dir == "" || re == "" {
			return errors.New("want DIR=REGEXP, as in ./cmd/cloister=TestRun")
		}
		if o.Only == nil {
			o.Only = map[string]string{}
		}
		o.Only[path.Clean(dir)] = re
		return nil
	})
	f.StringVar(&o.Skip, "skip", "", "do not run tests that match `regexp`")
	f.IntVar(&o.Count, "count", 1, "run each test `n` times")
	f.BoolVar(&o.Short, "short", false, "tell long tests to be short or skip")
	f.BoolVar(&o.Verbose, "v", false, "print every line of every test as it comes")
	f.DurationVar(&o.Timeout, "timeout", 0, "guest time for one package (default 10m, vmx 30m)")
	f.StringVar(&o.Cover, "cover", "", "write the coverage profile of all packages to `file`")
	f.StringVar(&o.JSON, "json", "", "write the events for the table of lanes to `file`")
	f.StringVar(&o.Row, "row", "", "`name` of the run in that table (default: the machine's)")
	f.StringVar(&o.Artefact, "out", "", "put what tests leave in $"+lab.OutVar+" into `dir`")
	f.Func("carry", "put a program into the machine's PATH: `file[=name]`; may be repeated", func(s string) error {
		o.Carry = append(o.Carry, s)
		return nil
	})
	within := f.Duration("within", 0, "end, with status 2, what is not done after this `time` (default: no limit)")
	optional := f.Bool("optional", false, "where this machine cannot have the emulator or a package, say so and end with status 0")
	f.BoolVar(&o.Shell, "shell", false, "open a shell on the console after the tests (svm machines)")
	f.IntVar(&o.Retries, "retries", 2, "boot again up to `n` times if the emulator itself hangs")
	f.StringVar(&o.GDB, "gdb", "", "hold the machine at its first instruction for gdb on `host:port` (svm machines)")
	f.StringVar(&o.CacheDir, "cache", "", "`dir` for packages (default $"+lab.CacheVar+" or the user's cache)")
	kernel := f.String("kernel", "", "Debian `package` of the machine's kernel")
	f.StringVar(&o.Guest, "guest", "", "Debian `package` of the kernel that tests boot as a guest (default linux-image-cloud-amd64)")
	appendTo := f.String("append", "", "`words` added to the kernel's command line")
	cpus := f.Int("cpus", 0, "number of CPUs (default: the machine's)")
	script := f.String("script", "", "run the scenario in `file` alone, on the CPUs and with the command line that it asks for")
	if err := f.Parse(os.Args[1:]); err != nil {
		return fail(err)
	}
	var err error
	given := map[string]bool{} // an option that is given may be empty
	f.Visit(func(g *flag.Flag) { given[g.Name] = true })
	if given["script"] {
		err = scenario(&o, given, f.NArg(), name, *script)
	} else {
		o.Machine, err = lab.Lookup(*name)
	}
	if err != nil {
		return fail(err)
	}
	if err := check(&o, *cpus, *within); err != nil {
		return fail(err)
	}
	if *kernel != "" {
		o.Machine.Kernel = *kernel
	}
	if *cpus != 0 {
		o.Machine.CPUs = *cpus
	}
	o.Machine.Cmdline = append(o.Machine.Cmdline, strings.Fields(*appendTo)...)
	if o.CacheDir == "" {
		if o.CacheDir, err = lab.DefaultCacheDir(); err != nil {
			return fail(err)
		}
	}
	o.Stdout, o.Stderr = os.Stdout, os.Stderr
	if !given["script"] {
		o.Packages = f.Args()
	}
	if len(o.Packages) == 0 && !o.Shell {
		o.Packages = []string{"./..."}
	}

	// If make is killed, so are we, and with us the emulator.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return fail(fmt.Errorf("prctl: %w", err))
	}
	if os.Getppid() != parent {
		return fail(errors.New("whoever started this has ended"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if *within > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, *within, fmt.Errorf("%s: not done after %v", o.Machine.Name, *within))
		defer cancel()
		// What does not end by its context does not outlive the limit either: the emulator dies with this process.
		last := time.AfterFunc(*within+time.Minute, func() { os.Exit(fail(context.Cause(ctx))) })
		defer last.Stop()
	}
	if o.Shell {
		// A killed QEMU leaves the terminal raw.
		if old, err := term.GetState(int(os.Stdin.Fd())); err == nil {
			defer func() {
				if err := term.Restore(int(os.Stdin.Fd()), old); err != nil {
					fmt.Fprintln(os.Stderr, "lab: terminal:", err)
				}
			}()
		}
	}
	status, err := lab.Run(ctx, o)
	if o.JSON != "" {
		err = errors.Join(err, table(o.JSON))
	}
	switch {
	case errors.Is(err, lab.ErrGuest):
		fail(err)
		return 3
	case errors.Is(err, lab.ErrUnavailable):
		fail(err)
		if *optional {
			fmt.Fprintf(os.Stderr, "lab: %s was not run\n", o.Machine.Name)
			return 0
		}
		return 4
	case ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)): // what was going on fails in its own words: a package is cut off
		return fail(fmt.Errorf("stopped: %w", context.Cause(ctx)))
	case err != nil:
		return fail(err)
	}
	return status
}

// scenario has one script run, and nothing else, on its first machine or on the one that was named.
func scenario(o *lab.Options, given map[string]bool, args int, name *string, file string) error {
	// A machine has the repository's own files.
	if here, err := filepath.Abs(filepath.Dir(file)); err != nil || !strings.HasSuffix(here, "/lab/testdata") || filepath.Ext(file) != ".txtar" {
		return errors.Join(err, fmt.Errorf("-script %q: give one of lab/testdata/*.txtar", file))
	}
	s, err := lab.ReadScript(file)
	if err != nil {
		return err
	}
	if o.Run != "" || len(o.Only) > 0 || args > 0 {
		return fmt.Errorf("-script %s: it is all that runs; leave -run, -only and packages away", file)
	}
	for _, name := range []string{"cpus", "short", "skip"} {
		if given[name] {
			return fmt.Errorf("-script %s: its first lines say where it runs, and it is all that runs; leave -%s away", file, name)
		}
	}
	if !given["machine"] {
		*name = s.Machines[0]
	}
	m, err := lab.Lookup(*name)
	if err != nil {
		return err
	}
	o.Machine, err = s.Machine(m)
	o.Run, o.Packages = "^TestScenarios$/^"+regexp.QuoteMeta(s.Name)+"$", []string{"./lab"}
	return err
}

// check looks at what can be known to be wrong before minutes are spent.
func check(o *lab.Options, cpus int, within time.Duration) error {
	patterns := []string{o.Run, o.Skip}
	for _, p := range o.Only {
		patterns = append(patterns, p)
	}
	for _, p := range patterns {
		if _, err := regexp.Compile(p); err != nil {
			return fmt.Errorf("%w: -run, -skip and -only take regular expressions, as go test does", err)
		}
	}
	switch {
	case cpus < 0 || cpus > lab.MaxCPUs:
		return fmt.Errorf("-cpus %d: give 1 to %d", cpus, lab.MaxCPUs)
	case o.Count < 1:
		return fmt.Errorf("-count %d: give 1 or more", o.Count)
	case o.Timeout < 0 || within < 0:
		return errors.New("-timeout and -within: give a time above 0, such as 10m")
	case o.Retries < 0:
		return fmt.Errorf("-retries %d: give 0 or more", o.Retries)
	}
	if o.GDB != "" {
		if _, _, err := net.SplitHostPort(o.GDB); err != nil {
			return fmt.Errorf("-gdb: %w: give HOST:PORT, such as localhost:1234", err)
		}
	}
	if o.Cover != "" {
		if err := os.MkdirAll(filepath.Dir(o.Cover), 0o755); err != nil {
			return fmt.Errorf("-cover: %w: give a file whose directory can be made", err)
		}
	}
	if _, err := exec.LookPath("go"); err != nil {
		return errors.New("go is not in PATH: the tests are built here; put Go's bin directory into PATH")
	}
	return nil
}

// table prints the machine's row. It is printed here and not by make, so that the lab is make's own child
// and dies with it.
func table(file string) (err error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the lab failed before there was a machine, and says why
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l, err := lanes.Read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	_, err = lanes.Print(os.Stdout, []lanes.Lane{l})
	return err
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "lab:", err)
	return 2
}
