package lab

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// Backend is what emulates the machine, and with it the virtualization extension
// that KVM finds there.
type Backend string

// The back ends.
const (
	SVM Backend = "svm" // QEMU TCG
	VMX Backend = "vmx" // Bochs
)

// Machine describes a lab machine.
type Machine struct {
	Name    string
	Backend Backend
	Lane    testenv.Lane
	CPUs    int
	MemMB   int

	// Parallel: the CPUs run at the same time, as threads of the emulator, and not in turns. Nothing there
	// may switch tracepoints: QEMU can hang on it.
	Parallel bool

	Kernel  string   // Debian package; a metapackage stands for its newest kernel
	Cmdline []string // added to what the back end needs
	KVM     string   // the vendor module
	KVMArgs string   // its parameters
	Extra   []string // further modules: the results disk and what tests use
}

// quietCores is the host command line of an isolated machine: CPUs 2 and 3 are
// dedicated, interrupts and everything else stay on 0 and 1
// (Documentation/admin-guide/kernel-parameters.txt).
var quietCores = []string{
	"isolcpus=nohz,domain,managed_irq,2-3", "nohz_full=2-3", "rcu_nocbs=2-3", "irqaffinity=0-1",
}

// qemuModules: the results disk, vsock and tap for device tests.
var qemuModules = []string{"virtio_pci", "virtio_blk", "vhost_vsock", "tun"}

var machines = []Machine{
	{
		Name: "svm", Backend: SVM, Lane: testenv.LaneLab, CPUs: 4, MemMB: 2048, Kernel: "linux-image-amd64",
		Cmdline: quietCores, KVM: "kvm_amd", Extra: qemuModules,
	},
	{ // shadow paging: a stale translation shows here, which TCG's NPT hides
		Name: "svm-shadow", Backend: SVM, Lane: testenv.LaneLab, CPUs: 4, MemMB: 2048, Kernel: "linux-image-amd64",
		Cmdline: quietCores, KVM: "kvm_amd", KVMArgs: "npt=0", Extra: qemuModules,
	},
	{ // several CPUs really at once, for races and for what starves
		Name: "svm-parallel", Backend: SVM, Lane: testenv.LaneLabParallel, CPUs: 4, MemMB: 2048, Kernel: "linux-image-amd64",
		Cmdline: quietCores, KVM: "kvm_amd", Extra: qemuModules, Parallel: true,
	},
	{ // nothing isolated at boot: for what isolates cores at run time
		Name: "svm-plain", Backend: SVM, Lane: testenv.LaneLabPlain, CPUs: 4, MemMB: 2048, Kernel: "linux-image-amd64",
		KVM: "kvm_amd", Extra: qemuModules,
	},
	{
		Name: "vmx", Backend: VMX, Lane: testenv.LaneLabVMX, CPUs: 1, MemMB: 1024, Kernel: "linux-image-cloud-amd64",
		KVM: "kvm_intel", Extra: []string{"ata_piix", "sd_mod"},
	},
	{ // PREEMPT_RT wants a constant TSC to host KVM, which QEMU's TCG lacks
		Name: "vmx-rt", Backend: VMX, Lane: testenv.LaneLabVMX, CPUs: 1, MemMB: 1024, Kernel: "linux-image-rt-amd64",
		KVM: "kvm_intel", Extra: []string{"ata_piix", "sd_mod"},
	},
}

// Machines returns the machines that can be asked for by name.
func Machines() []Machine { return slices.Clone(machines) }

// Lookup returns the machine of that name.
func Lookup(name string) (Machine, error) {
	var names []string
	for _, m := range machines {
		if m.Name == name {
			m.Cmdline, m.Extra = slices.Clone(m.Cmdline), slices.Clone(m.Extra)
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Machine{}, fmt.Errorf("no lab machine %q; there are %s", name, strings.Join(names, ", "))
}

// row is the machine's name in the table of lanes.
func (m Machine) row() string {
	if m.Name == string(SVM) {
		return string(testenv.LaneLab)
	}
	return "lab-" + m.Name
}

// disk is the block device that takes the results.
func (m Machine) disk() string {
	if m.Backend == VMX {
		return "/dev/sda"
	}
	return "/dev/vda"
}

// cmdline is the kernel's command line. panic=-1 restarts at once after a panic,
// which the runner takes for the machine's end; unknown_nmi_panic makes the
// runner's NMI print the stacks of a machine that hangs. An emulator that is not
// scheduled for a moment fails the timer check ("8254 timer not connected"), hence
// no_timer_check.
func (m Machine) cmdline() string {
	c := []string{"console=ttyS0,115200", "panic=-1", "quiet", "mitigations=off", "tsc=reliable", "unknown_nmi_panic=1", "no_timer_check"}
	if m.Backend == VMX {
		// Bochs' timers are too far from real time for delay calibration.
		c = append(c, "nokaslr", "lpj=4000000")
	} else {
		// The default under TCG is the HPET, whose vDSO makes system calls. Stacks are printed at levels
		// that "quiet" hides, and a panic (our NMI) prints those of all CPUs: a hang is judged by them.
		c = append(c, "clocksource=tsc", "loglevel=5", "panic_print=0x40", "sysctl.kernel.softlockup_all_cpu_backtrace=1")
	}
	return strings.Join(append(c, m.Cmdline...), " ")
}
