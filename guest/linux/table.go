package linux

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Level says how much of a system call is there.
type Level string

const (
	// Full means as documented in its manual page, for one process.
	Full Level = "full"
	// Partial means that the note says what is missing.
	Partial Level = "partial"
	// Refused means that every call gets the same error.
	Refused Level = "refused"
)

type handler func(*Kernel, *Task, args) (uint64, unix.Errno)

// call is one line of the table. Exactly one of fn and errno is set.
type call struct {
	nr    uint64
	name  string
	level Level
	fn    handler
	errno unix.Errno // of a refused call, which is warned about and counted
	note  string
}

// tableSize is one more than Linux's highest number here; Cloister's own lie far above.
const tableSize = 512

// byNumber is the table in the order of its numbers, and own the few that are out of it.
var byNumber, own = index(fileCalls, socketCalls, processCalls, refusedCalls)

func index(parts ...[]call) ([tableSize]*call, map[uint64]*call) {
	var table [tableSize]*call
	high := map[uint64]*call{}
	for _, part := range parts {
		for i := range part {
			c := &part[i]
			if c.nr < tableSize {
				table[c.nr] = c
			} else {
				high[c.nr] = c
			}
		}
	}
	return table, high
}

// lookup returns the entry of nr, nil when there is none.
func lookup(nr uint64) *call {
	if nr < tableSize {
		return byNumber[nr]
	}
	return own[nr]
}

// Name returns the name of system call nr ("read", "cloister_isolate"), or "syscall_N" for a number
// that nobody has.
func Name(nr uint64) string {
	if c := lookup(nr); c != nil {
		return c.name
	}
	return fmt.Sprintf("syscall_%d", nr)
}

// tableText is docs/linux-abi.md.
func tableText() string {
	var b strings.Builder
	count := map[Level]int{}
	var rows strings.Builder
	row := func(c *call) {
		count[c.level]++
		note := c.note
		if c.errno != 0 {
			note = unix.ErrnoName(c.errno) + ": " + note
		}
		number := fmt.Sprint(c.nr)
		if c.nr >= tableSize {
			number = fmt.Sprintf("%#x", c.nr)
		}
		fmt.Fprintf(&rows, "| %s | `%s` | %s | %s |\n", number, c.name, c.level, note)
	}
	for _, c := range byNumber {
		if c != nil {
			row(c)
		}
	}
	for _, c := range processCalls {
		if c.nr >= tableSize {
			row(lookup(c.nr))
		}
	}
	fmt.Fprintf(&b, `# The Linux system calls of a program guest

Generated from the table in guest/linux by its test (go test ./guest/linux -run TestDocument -update).

A program guest is one process. %d calls are full (as their manual page says), %d partial
(the note says what is missing) and %d refused: they answer one error, are counted, and are named once on
the standard error of the run (but for splice, tee, vmsplice and rseq, which programs try and do without). Numbers that are not listed answer ENOSYS in the same way.

| number | call | level | note |
| --- | --- | --- | --- |
`, count[Full], count[Partial], count[Refused])
	return b.String() + rows.String()
}
