package host

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// rights says in one line which of the trees that a plan writes to cannot be written, before anything is: a mount that is
// read-only, or somebody else's cgroups, is no refusal of one setting but of what the plan is for.
func rights(s System, p *Plan) error {
	mounts := mountPoints(s)
	why := map[string]string{}
	var where []string
	for _, step := range p.Steps {
		name := step.Setting.file(s)
		switch {
		case step.Setting.Kind == Directory:
			name = path.Dir(name)
		case step.Setting.Kind != File, step.Setting.Within != "":
			continue
		}
		var errno unix.Errno
		if err := s.Writable(name); !errors.As(err, &errno) || !slices.Contains([]unix.Errno{unix.EROFS, unix.EACCES, unix.EPERM}, errno) {
			continue // what is not there, or refuses for a reason of its own, the step itself will say
		}
		at := mountOf(mounts, name)
		if why[at] == "" {
			where = append(where, at)
			why[at] = fmt.Sprintf("/%s (%s, first /%s)", at, errno, name)
		}
	}
	if len(where) == 0 {
		return foreignCgroups(s, mounts)
	}
	for i, at := range where {
		where[i] = why[at]
	}
	return fmt.Errorf("host isolation: cannot write below %s: nothing was changed; mount it read-write (mount -o remount,rw), or run outside the container", strings.Join(where, ", "))
}

// foreignCgroups says that the cgroups here are a part of somebody else's: below it no isolated partition can be made. The
// root of a hierarchy has neither a type nor a partition of its own (Documentation/admin-guide/cgroup-v2.rst).
func foreignCgroups(s System, mounts []mount) error {
	l := CPUSets(s)
	for _, m := range mounts {
		if m.kind != "cgroup2" || l.V1 != "" || l.V2 != "" && l.V2 != m.at || !Has(s, m.at+"/cgroup.type") {
			continue
		}
		part := Text(s, m.at+"/cpuset.cpus.partition")
		if l.V2 != "" && (part == "root" || part == "isolated") {
			continue
		}
		return fmt.Errorf("host isolation: /%s is not the root of the hierarchy, and no partition that cores could be taken from: nothing was changed; run outside the container", m.at)
	}
	if l.V1 == "" && l.V2 == "" && hasCPUSets(s) {
		return fmt.Errorf("host isolation: %s: nothing was changed", l.Note)
	}
	return nil
}

// hasCPUSets reports whether the kernel has cpusets, mounted here or not: without them the threads of others could not be kept off.
func hasCPUSets(s System) bool {
	for line := range strings.Lines(Text(s, "proc/cgroups")) { // cgroups(7): name, hierarchy, number, enabled
		if f := strings.Fields(line); len(f) == 4 && f[0] == "cpuset" && f[3] == "1" {
			return true
		}
	}
	return Has(s, "proc/self/cpuset") // cpuset(7)
}

// mount is a line of /proc/mounts.
type mount struct {
	at      string // from the root of the host, without the leading slash
	kind    string
	options string
}

func mountPoints(s System) (list []mount) {
	for line := range strings.Lines(Text(s, "proc/mounts")) {
		if f := strings.Fields(line); len(f) >= 4 {
			list = append(list, mount{strings.TrimPrefix(f[1], "/"), f[2], f[3]})
		}
	}
	return list
}

// mountOf gives the mount point that a file is below: the longest.
func mountOf(mounts []mount, name string) (at string) {
	for _, m := range mounts {
		if strings.HasPrefix(name+"/", m.at+"/") && len(m.at) >= len(at) {
			at = m.at
		}
	}
	if at == "" {
		return path.Dir(name)
	}
	return at
}
