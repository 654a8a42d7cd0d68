// Bootkernel boots a Linux kernel as a guest by gokvm, prints what it prints, and ends with status 0 once the guest's init was there: a lab's
// machine runs whole kernels. The guest has one CPU, 512 MiB, a serial port and busybox.
//
//	bootkernel KERNEL
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/bobuhiro11/gokvm/machine"
	"github.com/cavaliergopher/cpio"
)

const (
	memory = 512 << 20
	shell  = "/bin/busybox"
	limit  = 5 * time.Minute // a lab's machine needs one

	// What gokvm's guest does without: no I/O APIC, no ACPI and no PCI here, so the timer is the PIT's by the PIC; and it does not know the TSC's rate.
	cmdline = "console=ttyS0 earlyprintk=serial noapic nolapic acpi=off pci=off nowatchdog mitigations=off tsc_early_khz=2000000 " +
		"panic=-1 rdinit=/init"

	// By the kernel's log, which needs no interrupt of the serial port.
	mark    = "the guest's init runs on "
	initial = "#!" + shell + " sh\n" + shell + " mknod /kmsg c 1 11\n" +
		"echo \"" + mark + "$(" + shell + " uname -r)\" >/kmsg\n" + shell + " sleep 1000\n"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bootkernel:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("usage: bootkernel KERNEL")
	}
	kernel, err := os.ReadFile(os.Args[1])
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
		return fmt.Errorf("load %s: %w", os.Args[1], err)
	}
	// The serial port of gokvm prints on this process's own output.
	out := os.Stdout
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	os.Stdout = w
	seen := make(chan error, 1)
	go func() { seen <- watch(r, out) }()
	go func() { seen <- fmt.Errorf("the guest ended: %w", m.RunInfiniteLoop(0)) }()
	select {
	case err := <-seen:
		return err
	case <-time.After(limit):
		return fmt.Errorf("no init after %v", limit)
	}
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

// watch copies until the mark has come.
func watch(from io.Reader, to io.Writer) error {
	lines := bufio.NewScanner(io.TeeReader(from, to))
	for lines.Scan() {
		if strings.Contains(lines.Text(), mark) {
			return nil
		}
	}
	return cmp.Or(lines.Err(), io.EOF)
}
