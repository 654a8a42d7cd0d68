package sdk

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/testenv"
)

var update = flag.Bool("update", false, "write the generated parts of the SDKs")

// constants are the numbers that programs need, under the names that C gives them (with CLOISTER_ before).
var constants = []constant{
	{"PAGE", abi.Page},
	{"SYS_ISOLATE", abi.SysIsolate},
	{"SYS_GAP_RECORD", abi.SysGapRecord},
	{"GAP_MAGIC", abi.GapMagic},
	{"GAP_KIND_LOOP", abi.GapKindLoop},
	{"GAP_KIND_CYCLIC", abi.GapKindCyclic},
	{"GAP_BUCKETS", abi.GapBuckets},
	{"GAP_RING", abi.GapRing},
	{"RING_MAGIC", abi.RingMagic},
	{"RING_VERSION", abi.RingVersion},
	{"RING_DATA", abi.RingData},
	{"RING_MIN_SIZE", abi.RingMinSize},
	{"RING_MAX_SIZE", abi.RingMaxSize},
	{"RING_PREFIX", abi.RingPrefix},
	{"SYS_SAFEPOINT", abi.SysSafepoint},
	{"SYS_SYNC", abi.SysSync},
	{"SAFEPOINT_HERE", abi.SafepointHere},
	{"SAFEPOINT_WORD", abi.SafepointWord},
	{"SAFEPOINT_QUIET", abi.SafepointQuiet},
}

// assembled are those that C hands to the assembler, which knows no suffix UL.
var assembled = []constant{
	{"NOTE_SITE", abi.NoteSite},
	{"NOTE_SAFE_WORD", abi.NoteSafeWord},
	{"NOTE_SAFE_RIP", abi.NoteSafeRIP},
	{"NOTE_PATCHABLE", abi.NotePatchable},
	{"SITE_IMM", abi.SiteImm},
	{"SITE_BRANCH", abi.SiteBranch},
	{"SITE_NAME", abi.SiteName},
}

type constant struct {
	name  string
	value uint64
}

// comments are those of abi.GapRecord's fields, by their C names.
var comments = map[string]string{
	"magic": "GAP_MAGIC", "kind": "GAP_KIND_LOOP: every pass is counted; GAP_KIND_CYCLIC: lateness of wake-ups",
	"threshold": "a delta at or above it is a gap; all times are TSC cycles", "period": "GAP_KIND_CYCLIC: between wake-ups",
	"passes": "made so far; store after hist", "gaps": "passes at or above the threshold", "stolen": "sum of all gaps",
	"min": "shortest delta", "max": "longest delta", "start": "TSC of the first pass", "last": "TSC of the latest pass",
	"ring_next": "gaps written to ring so far; store after ring", "reserved": "0",
	"hist": "bucket i counts deltas of i significant bits", "ring": "the latest gaps", "tsc": "at the end of the gap", "length": "of the gap",
}

// ringComments are those of abi.RingHeader's fields.
var ringComments = map[string]string{
	"magic": "RING_MAGIC", "version": "RING_VERSION", "size": "of the data, bytes; a power of two", "data": "RING_DATA",
	"head": "producer's: bytes written since the ring was made", "closed": "producer's: not 0 when no record follows",
	"dropped": "producer's: records given up because the ring was full", "tail": "consumer's: bytes taken since the ring was made",
	"reserved0": "0", "reserved1": "0", "reserved2": "0",
}

type field struct {
	name   string
	offset uintptr
	size   uintptr
	count  int          // 0: not an array
	elem   reflect.Type // of the array or the field
}

// fieldsOf lists the fields of an ABI struct under their C names.
func fieldsOf(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		f := t.Field(i)
		var name strings.Builder
		for j, r := range f.Name {
			// A new word starts at a capital after a small letter: RingNext, but TSC.
			if j > 0 && 'A' <= r && r <= 'Z' && 'a' <= f.Name[j-1] && f.Name[j-1] <= 'z' {
				name.WriteByte('_')
			}
			name.WriteString(strings.ToLower(string(r)))
		}
		e := field{name: name.String(), offset: f.Offset, size: f.Type.Size(), elem: f.Type}
		if e.name == "_" {
			e.name = "reserved"
		}
		if f.Type.Kind() == reflect.Array {
			e.count, e.elem = f.Type.Len(), f.Type.Elem()
		}
		list = append(list, e)
	}
	return list
}

var (
	gapType    = reflect.TypeFor[abi.Gap]()
	recordType = reflect.TypeFor[abi.GapRecord]()
	ringType   = reflect.TypeFor[abi.RingHeader]()
)

func generateC() string {
	var b strings.Builder
	for _, c := range constants {
		fmt.Fprintf(&b, "#define CLOISTER_%s %#xUL\n", c.name, c.value)
	}
	for _, c := range assembled {
		fmt.Fprintf(&b, "#define CLOISTER_%s %d\n", c.name, c.value)
	}
	fmt.Fprintf(&b, "#define CLOISTER_NOTE_OWNER %q\n#define CLOISTER_RING_DIR %q\n", abi.NoteOwner, abi.RingDir)
	for _, s := range []struct {
		name     string
		typ      reflect.Type
		comments map[string]string
	}{{"cloister_gap", gapType, comments}, {"cloister_record", recordType, comments}, {"cloister_ring_header", ringType, ringComments}} {
		fmt.Fprintf(&b, "\nstruct %s {\n", s.name)
		for _, f := range fieldsOf(s.typ) {
			typ, dim := "uint64_t", ""
			if f.elem == gapType {
				typ = "struct cloister_gap"
			}
			if f.count > 0 {
				dim = fmt.Sprintf("[%d]", f.count)
			}
			fmt.Fprintf(&b, "\t%s %s%s; /* %s */\n", typ, f.name, dim, s.comments[f.name])
		}
		b.WriteString("};\n")
	}
	return b.String()
}

func generateRust() string {
	var b strings.Builder
	b.WriteString("// SPDX-License-Identifier: Apache-2.0\n// Generated from guest/abi by guest/sdk/sdk_test.go; do not edit.\n\nuse core::sync::atomic::AtomicU64;\n\n")
	for _, c := range constants {
		fmt.Fprintf(&b, "/// `CLOISTER_%s` of cloister.h.\npub const %s: u64 = %#x;\n", c.name, c.name, c.value)
	}
	b.WriteString("\n#[allow(clippy::declare_interior_mutable_const)]\nconst ZERO: AtomicU64 = AtomicU64::new(0);\n")
	b.WriteString("#[allow(clippy::declare_interior_mutable_const)]\nconst NO_GAP: Gap = Gap {\n    tsc: ZERO,\n    length: ZERO,\n};\n")
	for _, s := range []struct {
		name, doc string
		typ       reflect.Type
	}{{"Gap", "One pass longer than the threshold.", gapType}, {"GapRecord", "What a loop records of its disturbances. Put it in a [`crate::PageAligned`].", recordType}} {
		fmt.Fprintf(&b, "\n/// %s\n#[repr(C)]\npub struct %s {\n", s.doc, s.name)
		for _, f := range fieldsOf(s.typ) {
			typ := "AtomicU64"
			if f.elem == gapType {
				typ = "Gap"
			}
			if f.count > 0 {
				typ = fmt.Sprintf("[%s; %d]", typ, f.count)
			}
			fmt.Fprintf(&b, "    /// %s\n    pub %s: %s,\n", strings.ToUpper(comments[f.name][:1])+comments[f.name][1:]+".", f.name, typ)
		}
		b.WriteString("}\n")
	}
	b.WriteString("\nimpl GapRecord {\n    /// A record of nothing; set `magic`, `kind`, `threshold` and `min` before it is shown.\n    pub const fn new() -> Self {\n        GapRecord {\n")
	for _, f := range fieldsOf(recordType) {
		v := "ZERO"
		if f.elem == gapType {
			v = "NO_GAP"
		}
		if f.count > 0 {
			v = fmt.Sprintf("[%s; %d]", v, f.count)
		}
		fmt.Fprintf(&b, "            %s: %s,\n", f.name, v)
	}
	b.WriteString("        }\n    }\n}\n\nimpl Default for GapRecord {\n    fn default() -> Self {\n        Self::new()\n    }\n}\n")
	return b.String()
}

const (
	beginC = "/* BEGIN GENERATED from guest/abi */\n"
	endC   = "/* END GENERATED */\n"
)

func TestGenerated(t *testing.T) {
	header, err := os.ReadFile("c/cloister.h")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(header), beginC)
	_, after, ok2 := strings.Cut(rest, endC)
	if !ok || !ok2 {
		t.Fatal("c/cloister.h has lost its marks of the generated part")
	}
	for file, want := range map[string]string{
		"c/cloister.h":    before + beginC + generateC() + endC + after,
		"rust/src/abi.rs": generateRust(),
	} {
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s differs from guest/abi; run go test ./guest/sdk -run TestGenerated -update", file)
		}
	}
	for _, f := range append(fieldsOf(recordType), fieldsOf(gapType)...) {
		if comments[f.name] == "" {
			t.Errorf("field %s has no comment", f.name)
		}
	}
	for _, f := range fieldsOf(ringType) {
		if ringComments[f.name] == "" {
			t.Errorf("field %s of a ring has no comment", f.name)
		}
	}
}

// command runs a tool in guest/sdk and fails the test with its output.
func command(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stderr.Bytes(), out)
	}
	return string(out)
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLayoutC(t *testing.T) {
	var b strings.Builder
	b.WriteString("#include <stddef.h>\n#include \"cloister.h\"\n#ifdef __cplusplus\n#define _Static_assert static_assert\n#endif\n")
	for _, s := range []struct {
		name string
		typ  reflect.Type
	}{{"struct cloister_gap", gapType}, {"struct cloister_record", recordType}, {"struct cloister_ring_header", ringType}} {
		fmt.Fprintf(&b, "_Static_assert(sizeof(%s) == %d, \"size\");\n", s.name, s.typ.Size())
		for _, f := range fieldsOf(s.typ) {
			fmt.Fprintf(&b, "_Static_assert(offsetof(%s, %s) == %d, \"%s\");\n", s.name, f.name, f.offset, f.name)
			fmt.Fprintf(&b, "_Static_assert(sizeof(((%s *)0)->%s) == %d, \"%s\");\n", s.name, f.name, f.size, f.name)
		}
	}
	for _, c := range slices.Concat(constants, assembled) {
		fmt.Fprintf(&b, "_Static_assert(CLOISTER_%s == %dUL, \"%s\");\n", c.name, c.value, c.name)
	}
	for _, c := range []struct{ tool, file, std string }{
		{"gcc", "layout.c", "c11"}, {"musl-gcc", "layout.c", "c11"}, {"g++", "layout.cc", "c++11"}, {"clang", "layout.c", "c11"},
	} {
		t.Run(c.tool, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			command(t, nil, c.tool, "-std="+c.std, "-Wall", "-Wextra", "-Werror", "-Ic", "-fsyntax-only", write(t, c.file, b.String()))
		})
	}
}

// TestHeaderIsOldC: the header itself compiles without a warning as C89 and C++98 with <stdint.h>.
func TestHeaderIsOldC(t *testing.T) {
	for _, c := range []struct{ tool, file, std string }{{"gcc", "old.c", "c89"}, {"gcc", "new.c", "c17"}, {"g++", "old.cc", "c++98"}, {"g++", "new.cc", "c++20"}} {
		t.Run(c.std, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			src := write(t, c.file, "#include \"cloister.h\"\nint use(struct cloister_record *r) { return cloister_isolate(1) + cloister_gap_record(r) + cloister_available(); }\n")
			command(t, nil, c.tool, "-std="+c.std, "-Wall", "-Wextra", "-Wno-long-long", "-pedantic", "-Werror", "-Ic", "-c", "-o", src+".o", src)
		})
	}
}

// TestRingHeader: cloister_ring.h compiles without a warning, and does natively what docs/rings.md says.
func TestRingHeader(t *testing.T) {
	src := `#include "cloister_ring.h"
static unsigned char mem[CLOISTER_RING_DATA + CLOISTER_RING_MIN_SIZE] CLOISTER_PAGE_ALIGNED;
int main(void)
{
	struct cloister_ring p, c;
	char in[3000], out[4096];
	int i;

	if (cloister_ring_open(&p, CLOISTER_RING_DIR "x") != -ENOENT || cloister_ring_format(mem, 100) != -EINVAL ||
	    cloister_ring_format(mem + 8, sizeof mem - 8) != -EINVAL || cloister_ring_attach(&p, mem, sizeof mem) != -EINVAL)
		return 1;
	if (cloister_ring_format(mem, sizeof mem) != 0 || cloister_ring_attach(&p, mem, sizeof mem) != 0 || cloister_ring_attach(&c, mem, sizeof mem) != 0)
		return 2;
	for (i = 0; i < 1000; i++) {
		uint64_t n = (uint64_t)i * 13 % sizeof in;
		memset(in, i, sizeof in);
		if (cloister_ring_get(&c, out, sizeof out) != -EAGAIN || cloister_ring_put(&p, in, n) != 0)
			return 3;
		if (n > 0 && cloister_ring_get(&c, out, n - 1) != -EMSGSIZE)
			return 4;
		if (cloister_ring_get(&c, out, sizeof out) != (int64_t)n || memcmp(in, out, n) != 0)
			return 5;
	}
	if (cloister_ring_put(&p, in, cloister_ring_max(&p) + 1) != -EMSGSIZE || cloister_ring_put(&p, in, 2100) != 0 || cloister_ring_put(&p, in, 2100) != -EAGAIN)
		return 6;
	cloister_ring_drop(&p);
	cloister_ring_close(&p);
	if (c.shared->dropped != 1 || cloister_ring_get(&c, out, sizeof out) != 2100 || cloister_ring_get(&c, out, sizeof out) != -ENODATA)
		return 7;
	p.shared->tail = p.head + 8;
	if (cloister_ring_put(&p, in, 3000) != -EBADMSG || cloister_ring_put(&p, in, 0) != -EBADMSG)
		return 8;
	c.shared->head = c.tail + 4104;
	if (cloister_ring_get(&c, out, sizeof out) != -EBADMSG)
		return 9;
	cloister_ring_attach(&c, mem, sizeof mem);
	c.shared->head = c.shared->tail = 0;
	if (cloister_ring_attach(&c, mem, sizeof mem) != 0)
		return 10;
	c.shared->head = 8;
	memset(c.data, 0xff, 8);
	return cloister_ring_get(&c, out, sizeof out) == -EBADMSG ? 0 : 11;
}
`
	for _, c := range []struct{ tool, file, std string }{
		{"gcc", "ring.c", "gnu89"}, {"gcc", "ring.c", "gnu17"}, {"musl-gcc", "ring.c", "gnu11"}, {"g++", "ring.cc", "gnu++98"}, {"g++", "ring.cc", "gnu++20"}, {"clang", "ring.c", "gnu11"},
	} {
		t.Run(c.tool+" "+c.std, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			in := write(t, c.file, src)
			command(t, nil, c.tool, "-std="+c.std, "-O2", "-Wall", "-Wextra", "-Wno-long-long", "-Werror", "-Ic", "-o", in+".out", in)
			command(t, nil, in+".out")
		})
	}
}

func TestLayoutRust(t *testing.T) {
	testenv.Need(t, testenv.Tool("rustc"), testenv.Tool("gcc"))
	var b strings.Builder
	b.WriteString("fn main() {\n    let r = cloister::PageAligned(cloister::GapRecord::new());\n    let r = &r.0;\n    let g = &r.ring[0];\n")
	b.WriteString("    assert_eq!(r as *const _ as usize % 4096, 0);\n")
	for _, s := range []struct {
		v   string
		typ reflect.Type
	}{{"g", gapType}, {"r", recordType}} {
		fmt.Fprintf(&b, "    assert_eq!(std::mem::size_of_val(%s), %d);\n", s.v, s.typ.Size())
		for _, f := range fieldsOf(s.typ) {
			fmt.Fprintf(&b, "    assert_eq!(&%s.%s as *const _ as usize - %s as *const _ as usize, %d);\n", s.v, f.name, s.v, f.offset)
			fmt.Fprintf(&b, "    assert_eq!(std::mem::size_of_val(&%s.%s), %d);\n", s.v, f.name, f.size)
		}
	}
	for _, c := range constants {
		fmt.Fprintf(&b, "    assert_eq!(cloister::%s, %d);\n", c.name, c.value)
	}
	b.WriteString("    assert!(!cloister::available());\n    assert_eq!(cloister::isolate(true), Err(cloister::Errno(cloister::ENOSYS)));\n")
	b.WriteString("    cloister::safepoint();\n    cloister::safepoint();\n    assert_eq!(cloister::quiet(true), Err(cloister::Errno(cloister::ENOSYS)));\n")
	b.WriteString("    assert_eq!(cloister::sync_cores(), Err(cloister::Errno(cloister::ENOSYS)));\n}\n")
	src := write(t, "layout.rs", b.String())
	dir := filepath.Dir(src)
	rlib := rustLib(t, dir)
	command(t, nil, "rustc", "--edition=2021", "-Dwarnings", "--extern", "cloister="+rlib, "-o", filepath.Join(dir, "layout"), src)
	command(t, nil, filepath.Join(dir, "layout"))
}

func rustLib(t *testing.T, dir string) string {
	t.Helper()
	rlib := filepath.Join(dir, "libcloister.rlib")
	command(t, nil, "rustc", "--edition=2021", "-Dwarnings", "-O", "--crate-type=rlib", "--crate-name=cloister", "-o", rlib, "rust/src/lib.rs")
	return rlib
}

// TestExamples builds every example as the static program that Cloister takes, and runs it natively.
func TestExamples(t *testing.T) {
	const sum = "sum 499999500000\n"
	warn := []string{"-O2", "-Wall", "-Wextra", "-Werror", "-static"}
	for _, c := range []struct {
		name, tool, want string
		build            func(t *testing.T, out string)
	}{
		{"c-glibc", "gcc", sum, func(t *testing.T, out string) {
			command(t, nil, "gcc", append(warn, "-o", out, "c/example/sealed.c")...)
		}},
		{"c-static-pie", "gcc", sum, func(t *testing.T, out string) {
			command(t, nil, "gcc", "-O2", "-static-pie", "-o", out, "c/example/sealed.c")
		}},
		{"c-musl", "musl-gcc", sum, func(t *testing.T, out string) {
			command(t, nil, "musl-gcc", append(warn, "-o", out, "c/example/sealed.c")...)
		}},
		{"c-as-c++", "g++", sum, func(t *testing.T, out string) {
			command(t, nil, "g++", append(warn, "-x", "c++", "-o", out, "c/example/sealed.c")...)
		}},
		{"c++", "g++", "passes 200000\n", func(t *testing.T, out string) {
			command(t, nil, "g++", append(warn, "-std=c++11", "-o", out, "c/example/record.cc")...)
		}},
		{"go", "go", sum, func(t *testing.T, out string) {
			command(t, []string{"CGO_ENABLED=0"}, "go", "build", "-o", out, "./go/example")
		}},
		{"rustc", "rustc", sum, func(t *testing.T, out string) {
			testenv.Need(t, testenv.Tool("gcc")) // rustc links with it
			rlib := rustLib(t, filepath.Dir(out))
			command(t, nil, "rustc", "--edition=2021", "-Dwarnings", "-O", "-Ctarget-feature=+crt-static", "--extern", "cloister="+rlib, "-o", out, "rust/example/sealed.rs")
		}},
		{"cargo", "cargo", sum, func(t *testing.T, out string) {
			testenv.Need(t, testenv.Tool("gcc"))
			target := filepath.Join(filepath.Dir(out), "target")
			// Outside the repository: cargo writes Cargo.lock beside Cargo.toml.
			crate := filepath.Join(filepath.Dir(out), "crate")
			if err := os.CopyFS(crate, os.DirFS("rust")); err != nil {
				t.Fatal(err)
			}
			command(t, nil, "cargo", "build", "--quiet", "--offline", "--manifest-path", filepath.Join(crate, "Cargo.toml"), "--target-dir", target, "--example", "sealed")
			if err := os.Rename(filepath.Join(target, "debug/examples/sealed"), out); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			out := filepath.Join(t.TempDir(), "example")
			c.build(t, out)
			if got := command(t, nil, out); got != c.want {
				t.Errorf("printed %q, want %q", got, c.want)
			}
		})
	}
}
