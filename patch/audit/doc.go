// Package audit keeps the log of patches: JSON lines, only ever appended, each chained to the one before it.
//
// A line is {"record":R,"prev":"P","hash":"H"} in exactly this form, where R is a patch.Record as it was encoded, P
// the hash of the line before (64 zeros in the first), and H the SHA-256 of the 32 bytes of P followed by the bytes of R as they
// stand there. Hashes are lower-case hexadecimal digits. docs/patching.md, "The audit log", says it for users.
//
// Invariants:
//  1. A line that was appended is on disk (fsync) when Append returns, and no byte before it was written to.
//  2. Nothing is appended to a log whose last line is not right: what comes later would hide it.
//  3. A line that a crash tore stays as it is. The next append ends it and chains it in, so that it can be told
//     from a line that somebody spoilt.
//  4. Verify names the first line that is wrong. What it cannot see is that lines are missing at the end, nor that the
//     whole log was written anew: that takes a hash which was kept elsewhere.
//
// Alternatives rejected: refusing to append behind a torn line (a crash would keep every later patch of that VM's name from being
// made, an urgent one too, until somebody edits the log by hand); cutting the torn bytes off (a log that is cut by its own writer
// can be cut by others unseen, and chattr +a forbids it); a key or a signature (who can write the log can read the key beside it); syslog or
// the journal (neither is chained, and both drop messages); a database (nobody can read it with a pager).
package audit
