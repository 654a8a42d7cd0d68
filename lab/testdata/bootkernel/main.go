// Bootkernel boots a Linux kernel as a guest by gokvm, prints what it prints, and ends with status 0 once the guest's init was there: a lab's
// machine runs whole kernels. The guest has one CPU, 320 MiB, a serial port and busybox.
//
//	bootkernel KERNEL
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/bobuhiro11/gokvm/machine"
	"github.com/cavaliergopher/cpio"
)

const (
	memory = 320 << 20 // gokvm loads the initial file system at 240 MiB, and the VT-x machine has 512
	shell  = "/bin/busybox"
	one    = "-one"

	tries   = 3
	silence = 120 * time.Second // the guest prints something in each of the 20 to 190 that it takes, by the machine's clock

	// What gokvm's guest does without: no I/O APIC, no ACPI and no PCI here, so the timer is the PIT's by the PIC; and it does not know the TSC's rate.
	cmdline = "console=ttyS0 earlyprintk=serial noapic nolapic acpi=off pci=off nowatchdog mitigations=off tsc_early_khz=2000000 " +
		"panic=-1 rdinit=/init"

	// By the kernel's log, which needs no interrupt of the serial port.
	mark    = "the guest's init runs on "
	initial = "#!" + shell + " sh\n" + shell + " mknod /kmsg c 1 11\n" +
		"echo \"" + mark + "$(" + shell + " uname -r)\" >/kmsg\n" + shell + " sleep 1000\n"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == one:
		err = guest(os.Args[2])
	case len(os.Args) == 2:
		err = boots(os.Args[1])
	default:
		err = errors.New("usage: bootkernel KERNEL")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bootkernel:", err)
		os.Exit(1)
	}
}

// boots boots the kernel until a guest has come to its init, a few times at most: docs/lab.md, "What it can prove, and what not", says how often one stops on its way.
func boots(kernel string) (err error) {
	for try := 1; try <= tries; try++ {
		if err = boot(kernel); err == nil {
			return nil
		}
		fmt.Fprintf(os.Stderr, "bootkernel: boot %d of %d at most: %v\n", try, tries, err)
	}
	return err
}

// boot is one guest in a process of its own, which alone can end it.
func boot(kernel string) error {
	c := exec.Command(os.Args[0], one, kernel)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	silent := time.AfterFunc(silence, func() { _ = c.Process.Kill() }) // the end of its output says so
	seen := false
	lines := bufio.NewScanner(io.TeeReader(out, os.Stdout))
	for !seen && lines.Scan() {
		silent.Reset(silence)
		seen = strings.Contains(lines.Text(), mark)
	}
	hung := !silent.Stop()
	_ = c.Process.Kill() // it may have ended by itself
	switch err := errors.Join(lines.Err(), c.Wait()); {
	case seen:
		return nil
	case hung:
		return fmt.Errorf("the guest has printed nothing for %v", silence)
	default:
		return errors.Join(errors.New("the guest ended"), err)
	}
}

// guest runs until it is killed. The serial port of gokvm prints on this process's own output.
func guest(file string) error {
	kernel, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	initrd, err := archive()
	if err != nil {
		return err
	}
	m, err := machine.New("/dev/kvm", 1, memory)
	if err != nil {
		return fmt.Errorf("make the machine: %w", err)
	}
	if err := m.LoadLinux(bytes.NewReader(kernel), bytes.NewReader(initrd), cmdline); err != nil {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return m.RunInfiniteLoop(0)
}

// archive is the guest's initial file system.
func archive() ([]byte, error) {
	busybox, err := os.ReadFile(shell)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	a := cpio.NewWriter(&b)
	add := func(name string, mode cpio.FileMode, data []byte) {
		err = errors.Join(err, a.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data))}))
		_, werr := a.Write(data)
		err = errors.Join(err, werr)
	}
	add("bin", cpio.TypeDir|0o755, nil)
	add("bin/busybox", cpio.TypeReg|0o755, busybox)
	add("init", cpio.TypeReg|0o755, []byte(initial))
	return b.Bytes(), errors.Join(err, a.Close())
}
