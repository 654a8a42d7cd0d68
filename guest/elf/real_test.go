package elf

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// TestRealPrograms loads what toolchains make, and holds the result against debug/elf.
func TestRealPrograms(t *testing.T) {
	const c = "#include <stdio.h>\nstatic __thread int t=7; static char big[1<<20]; int main(void){printf(\"%d\\n\",t+big[5]);return 0;}\n"
	const rs = "thread_local!{static T:u32=7} fn main(){T.with(|t|println!(\"{t}\"))}\n"
	const g = "package main\nfunc main(){println(7)}\n"
	for _, p := range []struct {
		name, tool, source, file string
		args                     []string
		want                     Type // 0: refused
		refusal                  string
	}{
		{"glibc static", "gcc", c, "a.c", []string{"-O2", "-static", "-o", "OUT", "IN"}, Fixed, ""},
		{"glibc static-pie", "gcc", c, "a.c", []string{"-O2", "-static-pie", "-o", "OUT", "IN"}, PIE, ""},
		{"glibc dynamic", "gcc", c, "a.c", []string{"-o", "OUT", "IN"}, 0, "ld-linux-x86-64.so.2"},
		{"shared library", "gcc", c, "a.c", []string{"-shared", "-fPIC", "-o", "OUT", "IN"}, 0, "shared library"},
		{"object", "gcc", c, "a.c", []string{"-c", "-o", "OUT", "IN"}, 0, "relocatable"},
		{"omagic", "gcc", "int x=1; void _start(void){x=2;for(;;);}", "a.c", []string{"-static", "-nostdlib", "-Wl,-N", "-o", "OUT", "IN"}, 0, "writable and executable"},
		{"one text segment", "gcc", c, "a.c", []string{"-static", "-Wl,-z,noseparate-code", "-o", "OUT", "IN"}, Fixed, ""},
		{"executable stack", "gcc", c, "a.c", []string{"-static", "-z", "execstack", "-o", "OUT", "IN"}, Fixed, ""},
		{"musl static", "musl-gcc", c, "a.c", []string{"-static", "-o", "OUT", "IN"}, Fixed, ""},
		{"musl static-pie of Debian", "musl-gcc", c, "a.c", []string{"-static-pie", "-o", "OUT", "IN"}, 0, "ld-musl"},
		{"Rust static-pie", "rustc", rs, "a.rs", []string{"-O", "-C", "target-feature=+crt-static", "-o", "OUT", "IN"}, PIE, ""},
		{"Rust static", "rustc", rs, "a.rs", []string{"-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-o", "OUT", "IN"}, Fixed, ""},
		{"Go", "go", g, "a.go", []string{"build", "-o", "OUT", "IN"}, Fixed, ""},
	} {
		t.Run(p.name, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(p.tool))
			dir := t.TempDir()
			in, out := filepath.Join(dir, p.file), filepath.Join(dir, "out")
			if err := os.WriteFile(in, []byte(p.source), 0o644); err != nil {
				t.Fatal(err)
			}
			args := make([]string, len(p.args))
			for i, a := range p.args {
				args[i] = strings.NewReplacer("OUT", out, "IN", in).Replace(a)
			}
			cmd := exec.Command(p.tool, args...)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", p.tool, err, b)
			}
			loadReal(t, out, p.want, p.refusal)
		})
	}
}

func loadReal(t *testing.T, path string, want Type, refusal string) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := Load(f, st.Size())
	if want == 0 {
		if err == nil || !strings.Contains(err.Error(), refusal) {
			t.Errorf("got %v, want a refusal with %q", err, refusal)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if im.Type != want {
		t.Errorf("type %v, want %v", im.Type, want)
	}
	checkInvariants(t, im, uint64(st.Size()))
	ref, err := elf.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range ref.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if n >= len(im.Segments) {
			t.Fatalf("missing segment %d", n)
		}
		if s := im.Segments[n]; s.VAddr != p.Vaddr || s.MemSize != p.Memsz || s.FileOffset != p.Off || s.FileSize != p.Filesz || uint32(s.Prot) != uint32(p.Flags) {
			t.Errorf("segment %d: %+v, debug/elf %+v", n, s, p.ProgHeader)
		}
		n++
	}
	if n != len(im.Segments) || im.Entry != ref.Entry || !im.Phdr.Loaded {
		t.Errorf("%d segments, entry %#x, phdr %+v", len(im.Segments), im.Entry, im.Phdr)
	}
	// Go's linker leaves its build-id section out of PT_NOTE; the kernel does not see it either.
	if s := ref.Section(".note.gnu.build-id"); s != nil && ref.Section(".note.go.buildid") == nil {
		if b, err := s.Data(); err != nil || string(b[16:]) != string(im.BuildID) {
			t.Errorf("build ID %x, section %x (%v)", im.BuildID, b, err)
		}
	}
}
