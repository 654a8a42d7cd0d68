package symbol

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// program is one way to build one of the sources below.
type program struct {
	name   string
	tool   string
	source string
	args   []string
	strip  bool
}

const cSource = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define NI __attribute__((noinline))
volatile int sink, zero;
static inline __attribute__((always_inline)) int inlined(int x) {
	sink += x;             /* INLINED */
	return sink * 3;
}
NI int leaf(int x) { return inlined(x) + 1; }
NI int big(int x) {
	char a[3000];
	memset(a, x, sizeof a);
	return leaf(a[x % 3000]) + a[5];
}
NI int dyn(int x) {
	char *a = __builtin_alloca(16 + x * 16);
	memset(a, x, 16 + x * 16);
	sink += a[x];
	return big(a[1]) + a[2];
}
NI int many(int a, int b, int c, int d, int e, int f, int g, int h) {
	int r = dyn(a + b) * c;
	return r + d * e + f * g + h + leaf(h);
}
NI int rec(int n) { return n == 0 ? many(1, 2, 3, 4, 5, 6, 7, 8) : rec(n - 1) + n; }
NI int aligned(int x) {
	int a[16] __attribute__((aligned(64)));
	for (int i = 0; i < 16; i++) a[i] = x + i;
	return rec(a[3] & 3) + a[x & 15];
}
static int cmp(const void *a, const void *b) { return leaf(*(int *)a - *(int *)b) ? *(int *)a - *(int *)b : 0; }
NI int tail(int x) { sink++; return aligned(x); }
int main(int argc, char **argv) {
	int v[] = { 5, 3, 9, 1 };
	qsort(v, 4, sizeof v[0], cmp);
	sink += tail(argc);
	char s[64];
	snprintf(s, sizeof s, "%d %s\n", sink & 1, "x");
	fputs(s, stdout);
	fflush(stdout);
	free(malloc(100));
	return 0;
}
`

const cppSource = `
#include <cstdio>
#include <string>
#include <vector>
#include <stdexcept>
namespace space {
struct Base { virtual int go(int x) = 0; virtual ~Base() {} };
template <class T> struct Derived : Base {
	std::vector<T> v;
	__attribute__((noinline)) int go(int x) override { v.push_back(T(x)); return deeper(v, x); }
	__attribute__((noinline)) int deeper(std::vector<T> &w, int x) {
		if (x > 2) throw std::runtime_error("enough");
		return (int)w.size() + go(x + 1);
	}
};
}
int main() {
	space::Derived<long> d;
	try { d.go(0); } catch (const std::exception &e) { std::puts(e.what()); }
	return 0;
}
`

const rustSource = `
#[inline(never)]
fn fib(n: u32, v: &mut Vec<u32>) -> u32 {
    v.push(n);
    if n < 2 { n } else { fib(n - 1, v) + fib(n - 2, v) }
}
mod inner {
    pub struct Thing<T> { pub t: T }
    impl<T: std::fmt::Display> Thing<T> {
        #[inline(never)]
        pub fn show(&self) -> String { format!("<{}>", self.t) }
    }
}
fn main() {
    let mut v = Vec::new();
    let r = fib(4, &mut v);
    println!("{} {}", inner::Thing { t: r }.show(), v.len());
}
`

const goSource = `package main

import (
	"os"
	"runtime"
	"strconv"
)

//go:noinline
func grow(n int) int {
	var a [1024]byte
	a[n] = byte(n)
	if n == 0 {
		return 0
	}
	return grow(n-1) + int(a[n])
}

// work runs on a stack that has grown before: the test follows one stack.
//
//go:noinline
func work() {
	os.Stdout.WriteString(deep(5, func(i int) string { return strconv.Itoa(i) }) + "\n")
}

//go:noinline
func deep(n int, f func(int) string) string {
	if n == 0 {
		return f(n)
	}
	return deep(n-1, f) + "."
}

func main() {
	runtime.LockOSThread()
	grow(20)
	work()
}
`

var programs = []program{
	{name: "glibc-O0", tool: "gcc", source: cSource, args: []string{"-static", "-O0", "-g"}},
	{name: "glibc-O2", tool: "gcc", source: cSource, args: []string{"-static", "-O2", "-g"}},
	{name: "glibc-dwarf4", tool: "gcc", source: cSource, args: []string{"-static", "-O2", "-gdwarf-4"}},
	{name: "glibc-gz", tool: "gcc", source: cSource, args: []string{"-static", "-O2", "-g", "-gz"}},
	{name: "static-pie-O2", tool: "gcc", source: cSource, args: []string{"-static-pie", "-O2", "-g"}},
	{name: "stripped-O2", tool: "gcc", source: cSource, args: []string{"-static", "-O2"}, strip: true},
	{name: "no-tables-O2", tool: "gcc", source: cSource, args: []string{"-static", "-O2", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"}},
	{name: "musl-O0", tool: "musl-gcc", source: cSource, args: []string{"-static", "-O0", "-g"}},
	{name: "musl-O2", tool: "musl-gcc", source: cSource, args: []string{"-static", "-O2", "-g"}},
	{name: "cpp-O0", tool: "g++", source: cppSource, args: []string{"-static", "-O0", "-g"}},
	{name: "cpp-O2", tool: "g++", source: cppSource, args: []string{"-static", "-O2", "-g"}},
	{name: "rust-O", tool: "rustc", source: rustSource, args: []string{"-O", "-g", "-C", "target-feature=+crt-static"}},
	{name: "rust-debug", tool: "rustc", source: rustSource, args: []string{"-g", "-C", "target-feature=+crt-static"}},
	{name: "go", tool: "go", source: goSource},
	{name: "go-stripped", tool: "go", source: goSource, args: []string{"-ldflags=-s -w"}},
}

// build compiles p, or says by testenv that the machine has no such compiler.
func build(t testing.TB, p program) string {
	t.Helper()
	testenv.Need(t, testenv.Tool(p.tool))
	dir := t.TempDir()
	ext := map[string]string{"gcc": ".c", "musl-gcc": ".c", "g++": ".cc", "rustc": ".rs", "go": ".go"}[p.tool]
	src, bin := filepath.Join(dir, "main"+ext), filepath.Join(dir, "prog")
	if err := os.WriteFile(src, []byte(p.source), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{}, p.args...), "-o", bin, src)
	if p.tool == "go" {
		args = append([]string{"build"}, args...)
	}
	cmd := exec.Command(p.tool, args...)
	cmd.Dir = dir
	if p.tool == "go" {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", p.tool, strings.Join(args, " "), err, out)
	}
	if p.strip {
		testenv.Need(t, testenv.Tool("strip"))
		if out, err := exec.Command("strip", "-o", bin+".stripped", bin).CombinedOutput(); err != nil {
			t.Fatalf("strip: %v\n%s", err, out)
		}
		return bin + ".stripped"
	}
	return bin
}

func open(t testing.TB, path string, bias uint64) *Table {
	t.Helper()
	tab, err := Open(path, bias)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	})
	return tab
}
