// Command cloister runs a program as a microVM on a core of its own and accounts for everything that
// disturbs it.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
)

// Exit statuses of Cloister itself; otherwise the program's own, or 128+n when signal n ended it.
const (
	statusBudget    = 124 // the budget was broken
	statusCloister  = 125 // Cloister failed
	statusNotRun    = 126 // the program cannot be executed
	statusNotFound  = 127 // there is no such program
	statusSignalled = 128
)

// monitorCommand is the hidden subcommand that the engine starts as a process of its own.
const monitorCommand = "monitor-process"

var commands = map[string]struct {
	run  func(args []string) int
	help string
}{
	"run":     {runCommand, "run a static Linux program on a core of its own"},
	"ps":      {psCommand, "list the running VMs"},
	"stats":   {statsCommand, "show the breaks of a running VM by cause"},
	"stop":    {stopCommand, "end a run"},
	"version": {versionCommand, "print the version and how it was built"},
}

func main() { os.Exit(command(os.Args[1:])) }

func command(args []string) int {
	if len(args) == 0 {
		usage(os.Stderr)
		return statusCloister
	}
	switch name := args[0]; name {
	case "help", "-h", "-help", "--help":
		usage(os.Stdout)
		return 0
	case monitorCommand:
		return monitorProcess()
	default:
		c, ok := commands[name]
		if !ok {
			return failf("no command %q: `cloister help` lists them", name)
		}
		return c.run(args[1:])
	}
}

func failf(format string, a ...any) int {
	fmt.Fprintf(os.Stderr, "cloister: "+format+"\n", a...)
	return statusCloister
}

// version is set by the linker (Makefile).
var version = ""

func versionString() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}

func versionCommand([]string) int {
	fmt.Println("cloister", versionString())
	if b, ok := debug.ReadBuildInfo(); ok {
		fmt.Println("built with", b.GoVersion)
	}
	return 0
}
