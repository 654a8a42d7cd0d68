package host

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"
)

// sim is a tree of files that behaves as the kernel's do where a plan depends on it.
type sim struct {
	Live
	readOnly []string         // parts of names that cannot be written
	errno    map[string]error // what a write to a name gives
	lies     map[string]string
	noCgroup bool
	made     int
	pushes   bool              // interrupts too that look as if the kernel managed them
	hook     func(name string) // called after a write to a file, or to "thread N"
	asked    map[int][]int     // by threads, if the kernel remembers that
}

// memory is a directory that costs no disk, where the host has one.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cloister-test-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// unpack lays a recorded tree out, with overlays of name and value; an empty name after "-" removes.
func unpack(t testing.TB, archive string, overlay map[string]string) *sim {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", archive))
	if err != nil {
		t.Fatal(err)
	}
	root := memory(t)
	put := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(bootID, "11111111-2222-3333-4444-555555555555\n") // a plan, and so a recording, does not read it
	for _, f := range a.Files {
		put(f.Name, string(f.Data))
	}
	for _, name := range slices.Sorted(maps.Keys(overlay)) {
		if gone, ok := strings.CutPrefix(name, "-"); ok {
			if err := os.RemoveAll(filepath.Join(root, gone)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		put(name, overlay[name]+"\n")
	}
	s := &sim{Live: Live{root}}
	if s.cgroups2() { // what a plan does not read, and so no recording has, but every kernel with partitions
		if name := simCgroup + "/cpuset.cpus.effective"; !Has(s, name) {
			put(name, Text(s, cpuDir+"/online")+"\n")
		}
		tasks, err := Tasks(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range tasks {
			if name := fmt.Sprintf("proc/%d/cgroup", k.TID); !Has(s, name) {
				put(name, "0::/\n")
			}
		}
	}
	return s
}

// Writable is what the kernel's access(2) says.
func (s *sim) Writable(name string) error {
	for _, r := range s.readOnly {
		if strings.Contains(name+"/", r) {
			return &fs.PathError{Op: "access", Path: "/" + name, Err: unix.EROFS}
		}
	}
	if s.noCgroup && strings.HasPrefix(name, "sys/fs/cgroup") {
		return &fs.PathError{Op: "access", Path: "/" + name, Err: unix.EACCES}
	}
	return s.Live.Writable(name)
}

func (s *sim) Write(name, value string) error {
	for _, r := range s.readOnly {
		if strings.Contains(name, r) {
			return &fs.PathError{Op: "open", Path: "/" + name, Err: unix.EROFS}
		}
	}
	if err := s.errno[name]; err != nil {
		return err
	}
	if v, ok := s.lies[name+"="+value]; ok {
		value = v
	}
	old, err := s.Read(name)
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(old))
	switch path.Base(name) {
	case "cgroup.subtree_control":
		words := strings.Fields(text)
		if on, ok := strings.CutPrefix(value, "+"); ok {
			words = append(words, on)
		} else if off, ok := strings.CutPrefix(value, "-"); ok {
			words = slices.DeleteFunc(words, func(w string) bool { return w == off })
		}
		order := []string{"cpuset", "cpu", "io", "memory", "pids"} // the kernel's, whatever was written last
		slices.SortFunc(words, func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) })
		if value = strings.Join(words, " "); value == "" {
			// The kernel's line has no end then.
			return errors.Join(os.WriteFile(s.path(name), nil, 0o644), s.byTheWay(name, text, value))
		}
	case "cgroup.threads", "cgroup.procs":
		group := strings.TrimPrefix(path.Dir(name), "sys/fs/cgroup")
		if group == "" {
			group = "/"
		}
		tid, err := strconv.Atoi(value)
		if err == nil {
			err = s.Live.Write(path.Join("proc", value, "cgroup"), "0::"+group)
		}
		if err == nil && (s.enabled() || group == "/") { // cpuset_attach
			err = s.reset(func(t Task) bool { return t.TID == tid })
		}
		return err
	case "schemata":
		line, out := strings.TrimSpace(value), []string(nil)
		if word, body, _ := strings.Cut(line, ":"); word == "L3" { // the kernel pads to the width of the widest mask
			for part := range strings.SplitSeq(body, ";") {
				id, mask, _ := strings.Cut(part, "=")
				line = strings.Replace(line, part, fmt.Sprintf("%s=%03s", id, mask), 1)
			}
		}
		for l := range strings.Lines(string(old)) {
			if strings.HasPrefix(strings.TrimSpace(l), line[:3]) {
				l = "    " + line
			}
			out = append(out, strings.TrimRight(l, "\n"))
		}
		value = strings.Join(out, "\n")
	}
	if i, j := strings.IndexByte(text, '['), strings.IndexByte(text, ']'); i >= 0 {
		value = strings.Replace(text[:i]+text[i+1:j]+text[j+1:], value, "["+value+"]", 1)
	}
	for _, n := range s.shared(name) {
		if err := s.Live.Write(n, value); err != nil {
			return err
		}
	}
	err = s.byTheWay(name, text, value)
	if s.hook != nil {
		s.hook(name)
	}
	return err
}

// shared lists the files behind which there is the same value: of machine checks all CPUs' (mca_cfg of the kernel's
// arch/x86/kernel/cpu/mce/core.c), of a frequency policy those of its CPUs.
func (s *sim) shared(name string) []string {
	dir, file := path.Split(name)
	var list []string
	if strings.Contains(dir, "/machinecheck/") {
		names, err := s.Names(path.Dir(path.Clean(dir)))
		if err != nil {
			return nil
		}
		for _, n := range names {
			list = append(list, path.Join(path.Dir(path.Clean(dir)), n, file))
		}
		return list
	}
	for _, c := range strings.Fields(Text(s, dir+"related_cpus")) {
		list = append(list, path.Join(cpuDir, "cpu"+c, "cpufreq", file))
	}
	if len(list) == 0 {
		list = []string{name}
	}
	return list
}

func (s *sim) Mkdir(name string) error {
	if s.noCgroup {
		return &fs.PathError{Op: "mkdir", Path: "/" + name, Err: unix.EACCES}
	}
	if err := s.Live.Mkdir(name); err != nil {
		return err
	}
	var files map[string]string
	switch {
	case strings.Contains(name, "resctrl"):
		b, err := s.Read("sys/fs/resctrl/schemata")
		if err != nil {
			return err
		}
		files = map[string]string{"schemata": strings.TrimRight(string(b), "\n"), "cpus_list": ""}
	case Has(s, "sys/fs/cgroup/cgroup.controllers"):
		files = map[string]string{"cgroup.type": "domain", "cpuset.cpus": "", "cpuset.cpus.partition": "member", "cgroup.procs": "", "cgroup.threads": ""}
	default:
		files = map[string]string{"cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpu_exclusive": "0", "cpuset.sched_load_balance": "1", "tasks": ""}
	}
	var err error
	for n, v := range files {
		err = errors.Join(err, os.WriteFile(s.path(path.Join(name, n)), []byte(v+"\n"), 0o644))
	}
	return err
}

func (s *sim) Rmdir(name string) error { return os.RemoveAll(s.path(name)) }

// allow writes a thread's affinity as it is.
func (s *sim) allow(tid int, cpus []int) error {
	name := fmt.Sprintf("proc/%d/task/%d/status", tid, tid)
	b, err := s.Read(name)
	if err != nil {
		return unix.ESRCH
	}
	out := ""
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Cpus_allowed_list:") {
			line = "Cpus_allowed_list:\t" + listOf(cpus) + "\n"
		}
		out += line
	}
	return os.WriteFile(s.path(name), []byte(out), 0o644)
}

func listOf(cpus []int) string {
	m := FormatMask(cpus)
	l, err := ParseMask(m)
	if err != nil {
		return err.Error()
	}
	text := []string{}
	for i := 0; i < len(l); {
		j := i
		for j+1 < len(l) && l[j+1] == l[j]+1 {
			j++
		}
		if i == j {
			text = append(text, strconv.Itoa(l[i]))
		} else {
			text = append(text, fmt.Sprintf("%d-%d", l[i], l[j]))
		}
		i = j + 1
	}
	return strings.Join(text, ",")
}

// snapshot is every file of a tree, byte for byte.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, root+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// same fails the test with each file that differs.
func same(t testing.TB, what string, before, after map[string]string) {
	t.Helper()
	for name, v := range before {
		if w, ok := after[name]; !ok || w != v {
			t.Errorf("%s: %s was %q, is %q (there: %v)", what, name, v, w, ok)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s: %s is new", what, name)
		}
	}
}
