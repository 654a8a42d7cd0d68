package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

var builds = []struct {
	name, tool, source string
	args               []string
}{
	{"c-glibc", "gcc", "hello.c", []string{"-static", "-O1", "-no-pie"}},
	{"c-glibc-pie", "gcc", "hello.c", []string{"-static-pie", "-fPIE", "-O2"}},
	{"c-musl", "musl-gcc", "hello.c", []string{"-static", "-O1", "-no-pie"}},
	{"cpp", "g++", "hello.cpp", []string{"-static", "-O1", "-no-pie"}},
	{"cpp-pie", "g++", "hello.cpp", []string{"-static-pie", "-fPIE", "-O2"}},
	{"rust-pie", "rustc", "hello.rs", []string{"-O", "-C", "target-feature=+crt-static"}},
	{"rust-fixed", "rustc", "hello.rs", []string{"-C", "target-feature=+crt-static", "-C", "relocation-model=static"}},
}

// everyByte is an argument with each byte that one may hold.
func everyByte() string {
	var s strings.Builder
	for c := 1; c < 256; c++ {
		s.WriteByte(byte(c))
	}
	return s.String()
}

// A program's output, input, arguments, environment and status are what they are natively.
func TestProgramsAsNatively(t *testing.T) {
	noise := make([]byte, 300_001)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(noise)
	words := strings.Repeat("the quick brown fox jumps over the lazy dog\n", 500)
	for _, p := range builds {
		t.Run(p.name, func(t *testing.T) {
			b := newBox(t)
			prog := b.copyIn(compile(t, p.tool, p.name, p.source, p.args...))
			text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
			n := b.same(process{argv: []string{prog}}, text(words))
			if n.status == 0 && p.source != "hello.c" || len(n.out) < 100 || len(n.err) < 5 {
				t.Errorf("natively it shows too little for this test to mean something: %+v", n)
			}
			b.same(process{argv: []string{prog}}, nil)
			b.same(process{argv: []string{prog, "", "two words", "x"}}, text(""))
			b.same(process{argv: []string{"./" + p.name, "a"}}, text("x"))
			if p.source != "hello.c" {
				return
			}
			b.same(process{argv: []string{prog, everyByte(), strings.Repeat("long", 20_000)}}, func() io.Reader { return bytes.NewReader(noise) })
			var big []string
			for i := range 2000 {
				big = append(big, strings.Repeat("v", i%700)+"="+everyByte()[:i%200])
			}
			b.same(process{argv: []string{prog, "many variables"}, extra: big}, nil)
		})
	}
}

// argv[0] is the path as it was given, found in PATH or not.
func TestArgvZero(t *testing.T) {
	b := newBox(t)
	prog := b.copyIn(compile(t, "gcc", "c-glibc", "hello.c", "-static", "-O1", "-no-pie"))
	for _, given := range []string{prog, "./c-glibc"} {
		if r := b.do(process{argv: b.guest(given)}); !strings.Contains(r.out, "arg[0] "+hexOf(given)+"\n") {
			t.Errorf("%s: %.200s", given, r.out)
		}
	}
	b.env[0] = "PATH=" + b.work
	if r := b.do(process{argv: b.guest("c-glibc")}); !strings.Contains(r.out, "arg[0] "+hexOf("c-glibc")+"\n") {
		t.Errorf("by PATH: %+v", r)
	}
}

func hexOf(s string) string {
	const digits = "0123456789abcdef"
	var h []byte
	for i := range len(s) {
		h = append(h, digits[s[i]>>4], digits[s[i]&15])
	}
	return string(h)
}

// Streams that are closed, full, or end early.
func TestStreams(t *testing.T) {
	b := newBox(t, testenv.Tool("bash"))
	b.copyIn(compile(t, "gcc", "c-glibc", "hello.c", "-static", "-O1", "-no-pie"))
	guest := "env -u _ " + b.bin + " run --quiet --rw . -- "
	for _, c := range []struct{ name, script string }{
		// Go's runtime opens /dev/null where one of the three was closed: error 0 in place of 9 (EBADF).
		{"stdin closed", "PROG ./c-glibc <&- 2>&1 | sed s/error.9/error\\ 0/"},
		{"stdout closed", "PROG ./c-glibc >&-; echo $?"},
		{"stderr closed", "PROG ./c-glibc 2>&-; echo $?"},
		{"stdin a directory", "PROG ./c-glibc <. 2>&1; echo $?"},
		{"stdin a file", "PROG ./c-glibc <c-glibc; echo $?"},
		{"appending", "echo first >log; PROG ./c-glibc >>log; cat log; rm log"},
		{"full device", "PROG ./c-glibc >/dev/full; echo $?"},
		{"reader gone", "(sleep 0.3; PROG ./c-glibc; echo $? >&2) 2>status | true; cat status; rm status"},
		{"pipe into a pipe", "printf 'a b\\nc' | PROG ./c-glibc | PROG ./c-glibc x"},
		{"descriptor inherited", "PROG ./c-glibc 0<c-glibc 1>one 2>two; cat one two; rm one two"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			n := b.do(process{argv: []string{"bash", "-c", strings.ReplaceAll(c.script, "PROG ", "env -u _ ")}})
			g := b.do(process{argv: []string{"bash", "-c", strings.ReplaceAll(c.script, "PROG ", guest)}})
			b.compare([]string{c.name}, n, g)
		})
	}
	b.t = t
}

// The program reads what is beside it as given, and nothing that was not given.
func TestMounts(t *testing.T) {
	b := newBox(t, testenv.Tool("busybox"))
	b.file("seen", "hello\n")
	cat := func(opts ...string) result {
		return b.cloister(append(append([]string{"run", "--quiet"}, opts...), "busybox", "cat", b.work+"/seen")...)
	}
	if r := cat(); r.status == 0 || r.out != "" {
		t.Errorf("without a mount: %+v", r)
	}
	if r := cat("--ro", b.work); r.status != 0 || r.out != "hello\n" {
		t.Errorf("--ro: %+v", r)
	}
	if r := b.cloister("run", "--quiet", "--ro", b.work+":/in", "busybox", "cat", "/in/seen"); r.out != "hello\n" {
		t.Errorf("--ro elsewhere: %+v", r)
	}
	if r := b.cloister("run", "--quiet", "--ro", b.work, "busybox", "touch", b.work+"/new"); r.status == 0 {
		t.Errorf("wrote below --ro: %+v", r)
	}
	if _, err := os.Stat(b.work + "/new"); err == nil {
		t.Error("there is a new file below --ro")
	}
	if r := b.cloister("run", "--quiet", "--rw", b.work, "busybox", "cat", b.work+"/../../../../../../../etc/passwd"); r.status == 0 || r.out != "" {
		t.Errorf("out of the mount: %+v", r)
	}
}
