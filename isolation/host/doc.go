// Package host makes cores of the machine quiet at run time, notices when that is undone, and gives them back exactly
// as they were. It is for any process that wants a quiet core; it knows nothing of virtual machines.
//
// Make says what would be written, Apply writes it, Restore takes it back, Watch looks on while a core is in use.
//
// Invariants:
//  1. Make and Watch never write.
//  2. Before a setting is written, its old and its new value are in the journal, on disk; before the kernel may change
//     one by the way, its old value.
//  3. The value of a setting is a function of what it was before anybody came and of who is there now; when
//     nobody is left it is what it was, byte for byte.
//  4. A value that is neither what it was nor what the journal says we wrote is somebody else's: it is said,
//     and left alone.
//  5. A core has one owner. A journal of another boot is void.
//  6. Where a tree that is needed cannot be written, nothing is.
//
// isolation/example/quietloop is a whole program that does it.
//
// Alternatives rejected: see docs/decisions/0006-host-isolation.md and 0015-host-settings.md.
package host
