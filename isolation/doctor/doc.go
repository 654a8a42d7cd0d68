// Package doctor tells what will disturb a core: each finding with its evidence, the breaks that it leads to, what it
// costs, and what takes it away. It is about any process that wants a quiet core.
//
// Invariants:
//  1. It reads, through host.System, and never writes; what it reads interrupts no core that a running program has
//     leased, unless it is the caller's own.
//  2. A finding names the file and the value that it rests on. What cannot be read is unknown, never well.
//  3. The grade of a core is that of the worst thing that was found, not a sum.
//
// Alternatives rejected: a score by points (one tick at 250 Hz is not made better by ten things that are right);
// measuring (that needs the core for minutes, and shows what came, not what will come: `cloister run @jitter` does it).
package doctor
