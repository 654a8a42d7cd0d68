// Command cloister-monitor is everything of Cloister but the engine: the process that watches a VM and reports
// it, and the commands that look at running VMs. It is started by cloister, not by hand.
package main

import (
	"os"

	"github.com/cloister-vmm/cloister/cmd/internal/bare"
	"github.com/cloister-vmm/cloister/cmd/internal/engine"
	"github.com/cloister-vmm/cloister/cmd/internal/monitor"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
)

func main() { os.Exit(command(os.Args[1:])) } // the one place: the status is the command's own

func command(args []string) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	switch name {
	case session.MonitorCommand:
		return monitor.Process()
	case "run": // --one-process
		return engine.Main(args[1:], monitor.Run)
	case session.BareCommand:
		return bare.Main(args[1:])
	case "ps":
		return monitor.PS(args[1:])
	case "stats":
		return monitor.Stats(args[1:])
	case "stop":
		return monitor.Stop(args[1:])
	case "doctor":
		return monitor.Doctor(args[1:])
	case session.PreparedCommand:
		return monitor.Prepared()
	case "host":
		return monitor.Host(args[1:])
	case "ring":
		return monitor.Ring(args[1:])
	case "patch":
		return monitor.Patch(args[1:])
	}
	return session.Failf("cloister-monitor is started by cloister, not by hand: `cloister help` lists the commands")
}
