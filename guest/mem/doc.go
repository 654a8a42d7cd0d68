// Package mem is the guest's address space: which ranges are mapped with which permission, the page
// tables that enforce it, and the host memory behind it.
//
// Addresses are mirrored: guest virtual == guest physical == offset in the guest memory file == host
// address - window. A guest pointer is translated by one addition, a checked range is a slice, and
// shared file mappings are the host's own. Permissions live in the guest's page tables, which only this
// package writes; the flush that makes a lowered permission effective on every back end is an MMU
// notifier on the host's mapping of the data page (docs/decisions/0003-guest-memory.md).
//
// Invariants:
//  1. A page is mapped in the guest's tables exactly if a region covers it with a permission other than
//     none, and never writable and executable at once.
//  2. When Unmap, Protect or Advise(DONTNEED) returns, no translation with the old permission is left in
//     any TLB or shadow table, provided the vCPUs that may use it are out of the guest or tolerate it.
//  3. Memory that is mapped anew reads as zero.
//  4. Committed bytes never exceed the limit.
//  5. In, Out and Prefix hand out only bytes that the guest itself may read or write.
//
// Alternatives rejected: one RAM slot with scattered frames (every pointer needs a walk, a file mapping
// is a copy); mirror memory with all-permissive tables (no NX, and a bad access is a failed KVM_RUN
// without an address).
package mem
