package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/symbol"
	"github.com/cloister-vmm/cloister/guest/symbol/profile"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// backtraceDepth is how many frames a report shows.
const backtraceDepth = 32

// write puts the report everywhere it was asked for.
func (m *monitor) write(r *breaks.Report, end session.Ended) (errs []error) {
	if !m.plan.Quiet {
		tty := isTerminal(2)
		if err := r.WriteText(os.Stderr, breaks.TextOptions{Color: tty && os.Getenv("NO_COLOR") == "", Timings: m.plan.Timings}); err != nil {
			errs = append(errs, fmt.Errorf("print the report: %w", err))
		}
	}
	if m.plan.Report != "" {
		errs = append(errs, notWritten("--report", replace(m.plan.Report, r.Encode)))
	}
	if m.plan.Profile != "" {
		errs = append(errs, notWritten("--pprof", replace(m.plan.Profile, func(w io.Writer) error {
			p := profile.Program{Path: m.plan.Program, BuildID: r.Program.BuildID, Duration: end.Result.Wall}
			if t, err := time.Parse(time.RFC3339, m.plan.Started); err == nil {
				p.Start = t
			}
			return profile.Write(w, p, m.samples(), m.symbolizer())
		})))
	}
	if m.plan.Trace != "" {
		errs = append(errs, m.trace.close(m.vcpus))
	}
	n := 0
	for _, e := range errs {
		if e != nil {
			errs[n] = e
			n++
		}
	}
	return errs[:n]
}

func (m *monitor) symbolizer() profile.Symbolizer {
	if m.symbol == nil {
		return nil
	}
	return m.symbol
}

// notWritten says which file of the run was lost, and what to do about it.
func notWritten(option string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s is not written: %w: run again with a path that stays writable", option, err)
}

// replace writes a file whole or not at all. A device, a pipe or a link to one is written to, never replaced.
func replace(name string, fill func(io.Writer) error) error {
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(fill(f), f.Close())
	}
	if to, err := filepath.EvalSymlinks(name); err == nil {
		name = to // a link to a file stays a link
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		// A directory that takes no new file may still hold one that can be written.
		if f, err = os.OpenFile(name, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o644); err != nil {
			return err
		}
		return errors.Join(fill(f), f.Close())
	}
	err = errors.Join(fill(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	return nil
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// samples are the sites of all vCPUs as rows of a profile.
func (m *monitor) samples() (list []profile.Sample) {
	hz := m.ready.Info.TSCHz
	for _, v := range m.vcpus {
		list = append(list, m.samplesOf(v, hz)...)
	}
	return list
}

func (m *monitor) samplesOf(v *vcpu, hz uint64) (list []profile.Sample) {
	if v.ledger.Magic == 0 {
		return nil // it was never used
	}
	for i := range v.ledger.Sites {
		s := &v.ledger.Sites[i]
		if s.Cause == 0 {
			continue
		}
		cause := breaks.Cause(s.Cause - 1)
		nr := ""
		if cause == breaks.Syscall {
			nr = linux.Name(uint64(s.Nr))
		}
		stack := m.stack(v, s)
		for half := range s.Count {
			if s.Count[half] == 0 {
				continue
			}
			list = append(list, profile.Sample{Stack: stack, Cause: cause.String(), Nr: nr, Count: s.Count[half],
				LostNs: breaks.Nanoseconds(s.Lost[half], hz), Sealed: half == breaks.Sealed})
		}
	}
	return list
}

func (m *monitor) stack(v *vcpu, s *breaks.Site) []uint64 {
	if s.Stack == 0 || m.symbol == nil {
		return []uint64{s.RIP}
	}
	words := v.ledger.Stacks[s.Stack-1][:]
	return m.symbol.Unwind(symbol.Regs{RIP: s.RIP, RSP: s.RSP}, words, backtraceDepth)
}

// fault turns the exception that ended the program into a report's terms.
func (m *monitor) fault(r vmm.Result) *breaks.Fault {
	f := r.Fault
	if f == nil {
		return nil
	}
	out := &breaks.Fault{
		Signal: unix.SignalName(unix.Signal(r.Signal)), VCPU: uint32(f.VCPU), Thread: f.Task, Name: breaks.ThreadName(f.Thread),
		RIP: breaks.Hex(f.Regs["rip"]), Registers: map[string]breaks.Hex{},
	}
	if f.HasAddress {
		a := breaks.Hex(f.Address)
		out.Address = &a
	}
	for name, v := range f.Regs {
		out.Registers[name] = breaks.Hex(v)
	}
	g := f.Regs
	regs := symbol.Regs{RIP: g["rip"], RSP: g["rsp"], All: true, RAX: g["rax"], RBX: g["rbx"], RCX: g["rcx"], RDX: g["rdx"],
		RSI: g["rsi"], RDI: g["rdi"], RBP: g["rbp"], R8: g["r8"], R9: g["r9"], R10: g["r10"], R11: g["r11"],
		R12: g["r12"], R13: g["r13"], R14: g["r14"], R15: g["r15"]}
	b := m.guestBytes(regs.RSP, 64<<10)
	words := make([]uint64, len(b)/8)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
	chain := []uint64{regs.RIP}
	if m.symbol != nil {
		chain = m.symbol.Unwind(regs, words, backtraceDepth)
	}
	for i, a := range chain {
		at := a
		if i > 0 {
			at-- // the call, not what follows it
		}
		l := m.locate(at)
		l.RIP = breaks.Hex(a)
		out.Backtrace = append(out.Backtrace, l)
	}
	return out
}
