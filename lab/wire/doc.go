// Package wire is what the lab's runner on the host and its init in the guest
// say to each other.
//
// The host speaks once, before the machine exists: a Job in the initramfs. The
// guest speaks on the second serial port, one Message as JSON on each line.
//
// Invariants:
//
//  1. The guest's last message is "done"; without it the guest did not finish,
//     whatever else it said.
//  2. A beat comes at least every BeatEvery of guest time while the guest's init
//     lives, so silence means a hang and not a quiet test.
//
// Alternatives rejected: virtio-serial and virtio-9p (Bochs has neither, and one
// channel for both machines is tested twice as often); TCP over an emulated network
// card (needs drivers, addresses and a port on the host).
package wire
