package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Prepared lists the CPUs that this user has made quiet for whoever comes (cloister host apply, run --keep), and all that
// somebody has made quiet. Without a journal both are empty.
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
		if own && c.PID == 0 {
			mine = append(mine, c.CPUs...)
		}
	}
	slices.Sort(mine)
	slices.Sort(all)
	return mine, all, nil
}
