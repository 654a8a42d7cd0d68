package host

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
)

// Recorder remembers every file that was read through it, so that what was found on one machine can be looked at
// on another. It refuses to change anything.
type Recorder struct {
	System
	mu   sync.Mutex
	read map[string][]byte
	dirs map[string]bool
}

// dirMark stands in a recording for a directory of which no file was read.
const dirMark = ".dir"

// Names lists and remembers that there is such a directory.
func (r *Recorder) Names(dir string) ([]string, error) {
	names, err := r.System.Names(dir)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.dirs == nil {
			r.dirs = map[string]bool{}
		}
		r.dirs[dir] = true
	}
	return names, err
}

// Read reads and remembers.
func (r *Recorder) Read(name string) ([]byte, error) {
	b, err := r.System.Read(name)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.read == nil {
			r.read = map[string][]byte{}
		}
		r.read[name] = b
	}
	return b, err
}

// InUse asks the system that is recorded.
func (r *Recorder) InUse(cpu int) (bool, error) { return inUse(r.System, cpu) }

// Add adds a file to the recording.
func (r *Recorder) Add(name, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.read == nil {
		r.read = map[string][]byte{}
	}
	r.read[name] = []byte(text)
}

var errRecorder = fmt.Errorf("a recorder only reads")

// Write is refused.
func (r *Recorder) Write(string, string) error { return errRecorder }

// Mkdir is refused.
func (r *Recorder) Mkdir(string) error { return errRecorder }

// Rmdir is refused.
func (r *Recorder) Rmdir(string) error { return errRecorder }

// SetAffinity is refused.
func (r *Recorder) SetAffinity(int, []int) error { return errRecorder }

// WriteTo writes what was read in the txtar format (golang.org/x/tools/txtar), sorted; of /proc/PID/status
// only what is used. Files that hold no text are left out.
func (r *Recorder) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.read {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			delete(r.dirs, d)
		}
	}
	for d := range r.dirs {
		r.read[d+"/"+dirMark] = nil
	}
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(r.read)) {
		text := r.read[name]
		if bytes.IndexByte(text, 0) >= 0 {
			continue
		}
		if strings.HasSuffix(name, "/status") {
			text = only(text, "Name:", "Cpus_allowed_list:")
		}
		fmt.Fprintf(&b, "-- %s --\n%s", name, text)
		if len(text) > 0 && text[len(text)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	return b.WriteTo(w)
}

func only(text []byte, beginnings ...string) (out []byte) {
	for line := range bytes.Lines(text) {
		if slices.ContainsFunc(beginnings, func(s string) bool { return bytes.HasPrefix(line, []byte(s)) }) {
			out = append(out, line...)
		}
	}
	return out
}
