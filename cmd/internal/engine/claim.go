package engine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cloister-vmm/cloister/internal/kvm"
)

// checkOutputs finds out before the run whether its files can be written.
func checkOutputs(o *options) error {
	outputs := map[string]string{"--report": o.report, "--pprof": o.profile, "--trace": o.trace}
	if o.patchLog != "" {
		path, err := filepath.Abs(o.patchLog) // others write to it, wherever they stand
		if err != nil {
			return fmt.Errorf("--patch-log: %w", err)
		}
		o.patchLog, outputs["--patch-log"] = path, path
	}
	for flag, name := range outputs {
		if name == "" {
			continue
		}
		_, statErr := os.Stat(name)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return fmt.Errorf("%s: %w: choose a path you can write", flag, err)
		}
		st, err := f.Stat()
		if err == nil && flag == "--patch-log" && !st.Mode().IsRegular() {
			err = fmt.Errorf("%s: not a regular file: choose another", name) // a log that cannot be read again cannot be verified
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		if errors.Is(statErr, os.ErrNotExist) {
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("%s: %w", flag, err)
			}
		}
	}
	return nil
}

// The socket of --metrics is made by the engine, before it makes anything else, and inherited by the
// monitor that serves it. So a port in use ends the run before there is a guest, without a message that the
// engine would have to wait for, and nobody can take the port between a check and its use. The engine
// closes its copy at once: when the monitor is killed, scrapes are refused instead of left waiting.

// listenMetrics binds the address of --metrics; nil without one. o.metrics becomes the address bound.
func listenMetrics(o *options) (*os.File, error) {
	if o.metrics == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", o.metrics)
	if err != nil {
		var reason syscall.Errno
		if errors.As(err, &reason) {
			return nil, fmt.Errorf("--metrics %s: %w: choose another address or port", o.metrics, reason)
		}
		return nil, fmt.Errorf("--metrics %s: %w: choose another address or port", o.metrics, err)
	}
	defer l.Close()
	o.metrics = l.Addr().String()
	t, ok := l.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("--metrics %s: not a TCP address", o.metrics)
	}
	f, err := t.File()
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", o.metrics, err)
	}
	return f, nil
}

// tscHz asks KVM for the TSC's frequency, before there is a machine.
func tscHz() (uint64, error) {
	s, err := kvm.Open()
	if err != nil {
		return 0, err
	}
	defer s.Close()
	vm, err := s.NewVM()
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	v, err := vm.NewVCPU(0)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	if k := v.TSCkHz(); k != 0 {
		return k * 1000, nil
	}
	return 0, errors.New("KVM_GET_TSC_KHZ: unknown: Cloister needs a TSC of known frequency")
}
