package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
)

// Partition is the cgroup that Apply has made an isolated partition of these CPUs, as a path from the root: a thread has to be
// in it to run on them. It is empty where there is none, and any thread can be pinned to them.
func Partition(s System, cpus []int) string {
	l := CPUSets(s)
	cpus = slices.Clone(cpus)
	slices.Sort(cpus)
	dir := path.Join(l.V2, group(slices.Compact(cpus)))
	if l.V2 == "" || Text(s, dir+"/cpuset.cpus.partition") != "isolated" {
		return ""
	}
	return "/" + dir
}

// Prepared lists the CPUs that this user has made quiet (cloister host apply, with --hold while it holds; run --keep), and all
// that somebody has made quiet. Those that a running program has are among them: they are leased. Without a journal both are empty.
func (a *Applier) Prepared() (mine, all []int, err error) {
	claims, err := a.Claims()
	if err != nil {
		return nil, nil, err
	}
	info, err := os.Stat(filepath.Join(a.Dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("host journal: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	own := ok && int(st.Uid) == os.Geteuid()
	for _, c := range claims {
		all = append(all, c.CPUs...)
		if own && c.alive(a.System) {
			mine = append(mine, c.CPUs...)
		}
	}
	slices.Sort(mine)
	slices.Sort(all)
	return mine, all, nil
}
