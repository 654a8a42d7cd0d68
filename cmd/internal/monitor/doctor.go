package monitor

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/doctor"
	"github.com/cloister-vmm/cloister/isolation/host"
)

const doctorHead = `cloister doctor [--cpu LIST] [--all] [--json] [--require GRADE]

Tells what will disturb the CPUs, from what, and what takes it away. Reads, never writes.
Grades: A nothing known will interrupt it; B rarely, or not provable; C every few seconds or on demand;
D many times a second, or shared with other tasks; F cannot be given away.`

// Doctor is `cloister doctor`; it returns the exit status.
func Doctor(args []string) int {
	f := newFlags("doctor")
	var cpus []int
	cpuFlag(f, &cpus, "the `CPUS` to look at, such as 2-3 (default: all that are on line)")
	all := f.Bool("all", false, "show what is well too, with its evidence")
	asJSON := f.Bool("json", false, "print the findings as JSON (cloister.doctor/v1)")
	require := f.String("require", "", "fail (status 125) if a CPU has a worse `grade` than this: A, B, C or D")
	root := f.String("root", "/", "look at the recorded tree in `DIR` in place of this machine")
	record := f.String("record", "", "write all that was read to `FILE`, as a txtar archive")
	rest, err := parseMixed(f, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flagUsage(os.Stdout, doctorHead, f)
		return 0
	case err != nil:
	case len(rest) > 0:
		err = fmt.Errorf("doctor takes no arguments, not %q", rest[0])
	default:
		err = refuseEmpty(f)
	}
	var want doctor.Grade
	if err == nil && *require != "" {
		want, err = doctor.ParseGrade(*require)
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	s := &host.Recorder{System: host.Live{Root: *root}}
	r, err := doctor.Examine(s, cpus)
	if err == nil && *record != "" {
		err = writeRecording(s, *record)
	}
	if err == nil && *asJSON {
		err = r.Encode(os.Stdout)
	} else if err == nil {
		err = r.WriteText(os.Stdout, *all)
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	if want != "" {
		if err := quietEnough(r, want); err != nil {
			return session.Failf("%v", err)
		}
	}
	return 0
}

// quietEnough refuses cores that are not, with the reason.
func quietEnough(r *doctor.Report, want doctor.Grade) error {
	for _, c := range r.Cores {
		if c.Grade.Below(want) {
			return fmt.Errorf("CPU %d is of grade %s, not the %s required, because of %s: see `cloister doctor --cpu %d`", c.CPU, c.Grade, want, c.Reasons(), c.CPU)
		}
	}
	return nil
}

// writeRecording keeps what a plan would read, too.
func writeRecording(s *host.Recorder, name string) error {
	online, err := host.CPUs(s, "sys/devices/system/cpu/online")
	if err == nil && len(online) > 1 {
		_, err = host.Make(s, host.JournalDir, host.Request{CPUs: online[1:], Level: host.Max, Cache: true})
	}
	if err != nil {
		return fmt.Errorf("--record: %w", err)
	}
	if c := doctor.Config(s); c != "" {
		s.Add(doctor.Recorded, c)
	}
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("--record: %w", err)
	}
	_, err = s.WriteTo(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("--record: %w", err)
	}
	return nil
}

// cpuFlag is --cpu LIST.
func cpuFlag(f *flag.FlagSet, cpus *[]int, help string) {
	f.Func("cpu", help, func(v string) (err error) {
		if *cpus, err = cores.ParseList(v); err == nil && len(*cpus) == 0 {
			err = errors.New("the list is empty")
		}
		return err
	})
}

// refuseEmpty: an option that was given says something. An empty one is mostly an unset variable.
func refuseEmpty(f *flag.FlagSet) (err error) {
	f.Visit(func(x *flag.Flag) {
		if err == nil && x.Name != "cpu" && x.Value.String() == "" {
			err = fmt.Errorf("--%s is given and says nothing: leave it out, or give a value", x.Name)
		}
	})
	return err
}
