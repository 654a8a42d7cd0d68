package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// What is undone between an apply and the first look of the watch is told of once, whether before the watch began or after.
func TestUndoneBeforeWatch(t *testing.T) {
	testenv.Need(t, testenv.Root)
	root := t.TempDir()
	const interval, migration = "proc/sys/vm/stat_interval", "proc/sys/kernel/timer_migration"
	put := func(name, text string) {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"sys/devices/system/cpu/online": "0-1", "sys/devices/system/cpu/present": "0-1", "proc/mounts": "", "proc/sys/kernel/random/boot_id": "1", interval: "1", migration: "1",
	} {
		put(name, text)
	}
	s := host.Live{Root: root}
	a := &host.Applier{System: s, Dir: filepath.Join(root, "run")}
	r := host.Request{CPUs: []int{1}}
	res, err := a.Apply(r)
	if err != nil {
		t.Fatal(err)
	}
	put(interval, "7")
	w, err := host.NewWatch(s, []int{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	put(migration, "1")
	list, err := undone(a, w, r, res)
	if err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if again := w.Check(); len(again) > 0 {
		t.Errorf("and again: %v", again)
	}
}
