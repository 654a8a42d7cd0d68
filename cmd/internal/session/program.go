package session

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// monitorName is the second program: everything but the engine. It is a program of its own because what it
// links (HTTP, Prometheus, symbol tables) would make every start of the engine three milliseconds longer.
const monitorName = "cloister-monitor"

// MonitorPath finds cloister-monitor: beside this program, else in PATH. The error says where to put it.
func MonitorPath() (string, error) {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), monitorName)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	p, err := exec.LookPath(monitorName)
	if err != nil {
		return "", fmt.Errorf("%s is not there: install it beside cloister, or in PATH", monitorName)
	}
	return p, nil
}

// ExecMonitor becomes cloister-monitor with the given arguments. It returns only if that fails.
func ExecMonitor(args []string) int {
	path, err := MonitorPath()
	if err == nil {
		err = unix.Exec(path, append([]string{monitorName}, args...), os.Environ())
	}
	return Failf("%v", err)
}
