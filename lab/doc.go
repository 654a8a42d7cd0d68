// Package lab boots emulated machines that have hardware-style KVM and runs the
// project's tests in them, so that one command on any machine with Go and apt
// shows what the host alone cannot: guest code at CPL 0 on SVM and VT-x, nested and
// shadow paging, isolated cores without a tick, cpuset partitions, whole guest
// kernels, and exit counts by kvm:kvm_exit.
//
// A run has these steps, each with its own file: fetch kernels from Debian packages
// (cache.go, kernel.go), build test binaries and an initramfs (tests.go, image.go),
// start an emulator (emulator.go), watch it (session.go), and turn what the guest's
// init says (wire, init) into the events of go test -json (results.go).
//
// Invariants:
//
//  1. A file in the cache is whole and has the hash that apt's metadata named; it
//     appears under its name by rename(2) only. Nothing but the cache is kept.
//  2. No emulator and no command outlives the run: they are killed by group when the
//     run ends for any reason, and by the kernel (PR_SET_PDEATHSIG) when the run is
//     killed.
//  3. A machine that does not say "done" has failed. Silence, a panic and an early
//     end are told apart, and each comes with the end of the console. Only what no
//     test can have caused is tried again (tries.go), and the table says so.
//  4. The guest is under test and is not trusted: what it sends is bounded, and it
//     does not choose where its files go on the host.
//  5. Nothing reads the network after the packages are in the cache.
//
// What the lab cannot show is time: see docs/lab.md.
//
// Alternatives rejected. hugelgupf/vmtest and lmb/vimto: both need virtio devices
// or 9p, which Bochs does not emulate, and hardware acceleration to be of use, and
// neither passes KVM to the guest; the ideas of a Go init, of test2json on the host
// and of scripts as scenarios are theirs. virtme-ng and a shared root file system:
// the result would depend on what the host has installed. A prepared disk image:
// somebody has to build, store and trust it. KVM nested in KVM: the machines we have
// offer a software back end that does not nest.
package lab
