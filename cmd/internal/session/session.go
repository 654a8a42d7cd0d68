package session

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Exit statuses of Cloister itself; otherwise the program's own, or 128+n when signal n ended it.
const (
	StatusBudget    = 124 // the budget was broken
	StatusCloister  = 125 // Cloister failed
	StatusNotRun    = 126 // the program cannot be executed
	StatusNotFound  = 127 // there is no such program
	StatusSignalled = 128
)

// MonitorCommand is the subcommand of cloister-monitor that the engine starts as a process of its own.
const MonitorCommand = "monitor-process"

// BareCommand is the subcommand of cloister-monitor that `cloister run --bare` becomes; run's own arguments follow.
const BareCommand = "run-bare"

// PreparedCommand is the subcommand of cloister-monitor that prints two CPU lists, a line each: those that this user has made
// quiet for whoever comes, and all that anybody has.
const PreparedCommand = "prepared-cores"

// Failf says what went wrong, in one line, and gives the status of a failure of Cloister itself.
func Failf(format string, a ...any) int {
	fmt.Fprintf(os.Stderr, "cloister: %s\n", oneLine(fmt.Sprintf(format, a...)))
	return StatusCloister
}

// What is kept of an error: more is a name that somebody gave. The operation stands at the beginning, the remedy at the end.
const maxHead, maxTail = 3000, 1000 // characters

// oneLine makes of several errors, and of names with line ends and escape sequences in them, one line.
func oneLine(s string) string {
	var line []rune
	for _, r := range strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") {
		if unicode.IsPrint(r) {
			line = append(line, r)
		} else {
			line = append(line, []rune(strings.Trim(strconv.QuoteRune(r), "'"))...)
		}
	}
	if n := len(line); n > maxHead+maxTail {
		return string(line[:maxHead]) + " … " + string(line[n-maxTail:])
	}
	return string(line)
}

// version is set by the linker (Makefile, -X).
var version = ""

// Version is the version of this build.
func Version() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}

// ParseOnBreak gives the action and, for a signal, its number.
func ParseOnBreak(s string) (string, int, error) {
	switch s {
	case "report", "stop", "kill":
		return s, 0, nil
	}
	if n, ok := strings.CutPrefix(s, "signal="); ok {
		if sig, err := strconv.Atoi(n); err == nil && sig >= 1 && sig <= 64 {
			return "signal", sig, nil
		}
		if sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(n), "SIG")); sig != 0 {
			return "signal", int(sig), nil
		}
	}
	return "", 0, fmt.Errorf("--on-break %q: choose report, stop, kill or signal=N, from 1 to 64 or a name such as USR1", s)
}
