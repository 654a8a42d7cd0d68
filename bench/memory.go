package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memory takes the proportional set size of engine and monitor while a guest spins, less the guest's pages.
func (b *bench) memory() (err error) {
	for range 10 {
		c := exec.Command(b.path("cloister"), "run", "--quiet", "--cpu", fmt.Sprint(b.cpu), "--for", "60s", "@spin")
		var errs strings.Builder
		c.Stderr = &errs
		if err := startOn(c); err != nil {
			return err
		}
		ended := make(chan struct{})
		go func() {
			c.Wait() // ended from outside: its status says only that
			close(ended)
		}()
		select {
		case <-ended: // another Cloister has the core
			if !strings.Contains(errs.String(), "in use") {
				return fmt.Errorf("@spin: %s", strings.TrimSpace(errs.String()))
			}
			time.Sleep(3 * time.Second)
			continue
		case <-time.After(3 * time.Second):
		}
		err := b.resident(c)
		err = errors.Join(err, c.Process.Signal(unix.SIGTERM))
		<-ended
		return err
	}
	return errors.New("another Cloister has the core for too long")
}

// resident takes the figures of a running engine and of its monitor, some times: the monitor looks at the host once a second and
// gives back afterwards what that took. The row is the median.
func (b *bench) resident(c *exec.Cmd) error {
	pids := []int{c.Process.Pid}
	kids, err := children(c.Process.Pid)
	if err != nil {
		return err
	}
	if len(kids) != 1 {
		return fmt.Errorf("the engine has %d children, want its monitor alone", len(kids))
	}
	pids = append(pids, kids[0])
	type sample struct {
		total float64 // KiB
		parts [2]map[string]float64
	}
	var samples []sample
	for range 9 {
		var x sample
		for i, pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
			if err != nil {
				return err
			}
			if x.parts[i], err = residents(text); err != nil {
				return err
			}
			for _, kib := range x.parts[i] {
				x.total += kib
			}
		}
		samples = append(samples, x)
		time.Sleep(370 * time.Millisecond) // no part of a second, so that all phases of it are met
	}
	slices.SortFunc(samples, func(x, y sample) int { return cmp.Compare(x.total, y.total) })
	middle := samples[len(samples)/2]
	var names []string
	for _, p := range middle.parts {
		for n := range p {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	slices.SortFunc(names, func(x, y string) int {
		p := middle.parts
		return cmp.Compare(p[0][y]+p[1][y], p[0][x]+p[1][x])
	})
	var w strings.Builder
	fmt.Fprintln(&w, "### Resident memory beyond the guest's own (PSS)\n\n| what | engine, KiB | monitor, KiB |\n| --- | ---: | ---: |")
	for _, n := range names {
		fmt.Fprintf(&w, "| %s | %.0f | %.0f |\n", n, middle.parts[0][n], middle.parts[1][n])
	}
	b.details = append(b.details, w.String())
	b.rows = append(b.rows, Row{What: "resident memory beyond the guest's own, median", Ours: middle.total / 1024, Unit: "MiB", Limit: 12, N: len(samples)},
		Row{What: "resident memory beyond the guest's own, most", Ours: samples[len(samples)-1].total / 1024, Unit: "MiB", Limit: none, N: len(samples)})
	return nil
}

func children(pid int) (list []int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil && len(bytes.TrimSpace(text)) > 0 {
		for _, f := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			list = append(list, n)
		}
		return list, nil
	}
	// A child belongs to the thread that made it, and not every kernel has that file.
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			list = append(list, n)
		}
	}
	return list, nil
}

// residents adds up Pss by kind of mapping, KiB, without the guest's memory.
func residents(smaps []byte) (map[string]float64, error) {
	out := map[string]float64{}
	kind := ""
	sc := bufio.NewScanner(bytes.NewReader(smaps))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			kind = kindOf(f[1], strings.Join(f[5:], " "))
		case len(f) >= 2 && f[0] == "Pss:" && kind != "":
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return nil, fmt.Errorf("smaps: %q: %w", sc.Text(), err)
			}
			if kib > 0 {
				out[kind] += kib
			}
		}
	}
	return out, sc.Err()
}

// kindOf names a mapping; "" is the guest's own memory and what belongs to the kernel.
func kindOf(prot, name string) string {
	switch {
	case strings.HasPrefix(name, "/memfd:cloister-guest"):
		return ""
	case strings.HasPrefix(name, "/memfd:"):
		return "memfd " + strings.TrimSuffix(strings.TrimPrefix(name, "/memfd:"), " (deleted)")
	case strings.HasPrefix(name, "anon_inode:"):
		return strings.TrimPrefix(name, "anon_inode:") + " (shared with KVM)"
	case name == "[stack]":
		return "first stack"
	case strings.HasPrefix(name, "[anon:"):
		return strings.Trim(strings.TrimPrefix(name, "[anon:"), "] ")
	case strings.HasPrefix(name, "["):
		return ""
	case strings.HasPrefix(name, "/") && strings.Contains(prot, "x"):
		return "binary: code"
	case strings.HasPrefix(name, "/") && strings.Contains(prot, "w"):
		return "binary: data"
	case strings.HasPrefix(name, "/"):
		return "binary: constants"
	}
	return "anonymous: heap, stacks, bss"
}
