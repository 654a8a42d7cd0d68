package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// boot is what a back end needs to start a machine.
type boot struct {
	machine Machine
	kernel  string // bzImage
	initrd  string
	disk    string   // raw image that takes the results
	dir     string   // scratch
	shell   bool     // the console is this process's terminal
	input   *os.File // with shell: what to type instead, once the machine is up; nil: the terminal
	gdb     string   // host:port for QEMU's gdb stub; empty: none
	limit   limit
}

// The file descriptors of the serial ports in the emulator: the write ends of pipes.
const (
	consoleFD = "/dev/fd/3"
	controlFD = "/dev/fd/4"
)

// What a Bochs machine boots with, where Debian's packages have it.
const (
	bochsBIOS   = "/usr/share/bochs/BIOS-bochs-latest"
	bochsVGA    = "/usr/share/bochs/VGABIOS-lgpl-latest"
	isolinuxBin = "/usr/lib/ISOLINUX/isolinux.bin"
	ldlinux     = "/usr/lib/syslinux/modules/bios/ldlinux.c32"
)

// qemuNeeds and bochsNeeds: commands in PATH and files, and the Debian packages that have them.
var (
	qemuNeeds  = [2][]string{{"qemu-system-x86_64"}, {"qemu-system-x86"}}
	bochsNeeds = [2][]string{{"bochs", "genisoimage", bochsBIOS, bochsVGA, isolinuxBin, ldlinux}, {"bochs", "bochs-term", "bochsbios", "vgabios", "isolinux", "syslinux-common", "genisoimage"}}
)

// qemu returns the command of an SVM machine. Its monitor is on standard input and
// output; in a shell it shares the terminal with the console (Ctrl-a c).
func (b boot) qemu() *exec.Cmd {
	// One thread for all CPUs unless the machine is for what needs them side by side: with a thread for
	// each, QEMU before 8.1 may run kernel text as it was while another CPU patched it (docs/backends.md).
	thread := "single"
	if b.machine.Parallel {
		thread = "multi"
	}
	args := []string{
		"-accel", "tcg,thread=" + thread, "-cpu", "max", "-M", "q35",
		"-smp", strconv.Itoa(b.machine.CPUs), "-m", strconv.Itoa(b.machine.MemMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", b.kernel, "-initrd", b.initrd, "-append", b.machine.cmdline(),
		"-drive", "if=virtio,format=raw,cache=unsafe,file=" + strings.ReplaceAll(b.disk, ",", ",,"),
	}
	if b.shell {
		args = append(args, "-chardev", "stdio,id=console,mux=on,signal=off", "-mon", "chardev=console")
	} else {
		args = append(args, "-chardev", "file,id=console,path="+consoleFD, "-monitor", "stdio")
	}
	args = append(args, "-serial", "chardev:console", "-chardev", "file,id=control,path="+controlFD, "-serial", "chardev:control")
	if b.gdb != "" {
		args = append(args, "-gdb", "tcp:"+b.gdb, "-S")
	}
	return exec.Command("qemu-system-x86_64", args...)
}

// bochs writes the machine's configuration and returns its command. Debian's
// build has the debugger, which waits for "c"; its text display needs a terminal.
func (b boot) bochs() (*exec.Cmd, error) {
	iso, err := b.iso()
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(b.disk)
	if err != nil {
		return nil, err
	}
	console := "mode=file, dev=" + consoleFD
	rc := filepath.Join(b.dir, "bochsrc")
	// The disk's geometry is fixed at 16 heads of 63 sectors of 512 bytes.
	config := fmt.Sprintf(`display_library: term
config_interface: textconfig
cpu: model=corei7_haswell_4770, count=%d, ips=50000000, reset_on_triple_fault=1
memory: guest=%d, host=%d
romimage: file=%s
vgaromimage: file=%s
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=%q, mode=flat, cylinders=%d, heads=16, spt=63
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path=%q, status=inserted
boot: cdrom
com1: enabled=1, %s
com2: enabled=1, mode=file, dev=%s
log: %s
panic: action=report
error: action=report
clock: sync=none
`, b.machine.CPUs, b.machine.MemMB, b.machine.MemMB, bochsBIOS, bochsVGA, b.disk, info.Size()/(16*63*512), iso, console, controlFD,
		filepath.Join(b.dir, "bochs.log"))
	if err := os.WriteFile(rc, []byte(config), 0o644); err != nil {
		return nil, err
	}
	start := filepath.Join(b.dir, "start")
	if err := os.WriteFile(start, []byte("c\n"), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("bochs", "-q", "-f", rc, "-rc", start)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	return cmd, nil
}

// iso makes the CD that the machine boots from, with isolinux.
func (b boot) iso() (string, error) {
	root := filepath.Join(b.dir, "iso")
	if err := os.MkdirAll(filepath.Join(root, "isolinux"), 0o755); err != nil {
		return "", err
	}
	config := "default l\ntimeout 1\nlabel l\n kernel /vmlinuz\n append initrd=/initrd.gz " + b.machine.cmdline() + "\n"
	if err := os.WriteFile(filepath.Join(root, "isolinux", "isolinux.cfg"), []byte(config), 0o644); err != nil {
		return "", err
	}
	for name, from := range map[string]string{
		"vmlinuz":               b.kernel,
		"initrd.gz":             b.initrd,
		"isolinux/isolinux.bin": isolinuxBin,
		"isolinux/ldlinux.c32":  ldlinux,
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return "", fmt.Errorf("CD of the machine: %w", err)
		}
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			return "", err
		}
	}
	iso := filepath.Join(b.dir, "lab.iso")
	out, err := command(context.Background(), "genisoimage", "-quiet", "-o", iso, "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat",
		"-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", root).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("genisoimage: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return iso, nil
}

// openPTY opens a pseudo-terminal (pts(4)): Bochs wants one even if nobody looks.
func openPTY() (host, emulator *os.File, err error) {
	host, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("pseudo-terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(host.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(host.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(host.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 132})
	}
	if err == nil {
		emulator, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		if cerr := host.Close(); cerr != nil {
			err = fmt.Errorf("%w; %w", err, cerr)
		}
		return nil, nil, fmt.Errorf("pseudo-terminal: %w", err)
	}
	return host, emulator, nil
}
