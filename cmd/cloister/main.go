// Command cloister runs a program as a microVM on a core of its own and accounts for everything that
// disturbs it.
//
// This program is the engine; whatever is not `run` is done by cloister-monitor, which lies beside it.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/cloister-vmm/cloister/cmd/internal/engine"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
)

func main() { os.Exit(command(os.Args[1:])) } // the one place: the status is the program's own

func command(args []string) int {
	if len(args) == 0 {
		engine.Usage(os.Stderr)
		return session.StatusCloister
	}
	switch args[0] {
	case "run":
		return engine.Main(args[1:], nil)
	case "ps", "stats", "stop", "ring", "doctor", "host", "patch":
		return session.ExecMonitor(args)
	case "version":
		fmt.Println("cloister", session.Version())
		if b, ok := debug.ReadBuildInfo(); ok {
			fmt.Println("built with", b.GoVersion)
		}
		return 0
	case "help", "-h", "-help", "--help":
		engine.Usage(os.Stdout)
		return 0
	}
	return session.Failf("no command %q: `cloister help` lists them", args[0])
}
