package workload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/arch/x86/x86asm"
)

// blobs are the programs by assembly symbol: all faults are one.
func blobs() map[string]func() *byte {
	return map[string]func() *byte{"spin": spinCode, "jitter": jitterCode, "cyclic": cyclicCode, "control": controlCode, "exits": exitsCode, "fault": faultCode}
}

// indirect reports whether inst goes where no offset within the program says.
func indirect(inst x86asm.Inst) bool {
	switch inst.Op {
	case x86asm.LCALL, x86asm.LJMP, x86asm.RET, x86asm.LRET, x86asm.IRET, x86asm.IRETD, x86asm.IRETQ:
		return true
	case x86asm.JMP, x86asm.CALL:
		_, rel := inst.Args[0].(x86asm.Rel)
		return !rel
	}
	return false
}

func TestCodeStaysInside(t *testing.T) {
	for name, code := range blobs() {
		t.Run(name, func(t *testing.T) {
			l, err := extract(code())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(l.code); n > maxCode || n < labelLen {
				t.Fatalf("%d bytes of code", n)
			}
			starts := map[int]bool{}
			targets := map[int]int{}
			for at := 0; at < len(l.code); {
				inst, err := x86asm.Decode(l.code[at:], 64)
				if err != nil {
					t.Fatalf("at %#x: % x: %v", at, l.code[at:min(at+12, len(l.code))], err)
				}
				starts[at] = true
				// @control-loop calls functions of its own, which return.
				if indirect(inst) && name != "fault" && (name != "control" || inst.Op != x86asm.RET) {
					t.Errorf("at %#x: %v leaves the program", at, inst)
				}
				for _, a := range inst.Args {
					switch a := a.(type) {
					case x86asm.Rel:
						targets[at] = at + inst.Len + int(a)
					case x86asm.Mem:
						if a.Segment == x86asm.FS || a.Segment == x86asm.GS {
							t.Errorf("at %#x: %v uses thread-local storage", at, inst)
						}
						if a.Base == x86asm.RIP && (name != "fault" || at+inst.Len+int(int32(a.Disp)) != at) {
							t.Errorf("at %#x: %v refers outside the program", at, inst)
						}
						if (a.Base == x86asm.RSP || a.Base == x86asm.RBP) && name != "fault" {
							t.Errorf("at %#x: %v uses a stack that the program may not have", at, inst)
						}
					}
				}
				switch inst.Op {
				case x86asm.PUSH, x86asm.POP, x86asm.PUSHFQ, x86asm.POPFQ:
					if name != "fault" {
						t.Errorf("at %#x: %v uses a stack that the program may not have", at, inst)
					}
				}
				at += inst.Len
			}
			for at, to := range targets {
				if !starts[to] {
					t.Errorf("at %#x: a branch to %#x, which is no instruction of the program", at, to)
				}
			}
			for n, at := range l.labels {
				if !starts[at] {
					t.Errorf("label %d stands inside an instruction", n)
				}
			}
		})
	}
}

// TestLoopsAreClean: between a loop's label and the next one stand no system call and no memory operand but
// the record's (R14).
func TestLoopsAreClean(t *testing.T) {
	for _, c := range []struct {
		name      string
		code      func() *byte
		from, to  byte
		mayRecord bool
	}{
		{"spin", spinCode, 1, 2, false},
		{"jitter", jitterCode, 1, 2, true},
		{"cyclic wait", cyclicCode, 1, 2, false},
		{"cyclic wake", cyclicCode, 2, 3, true},
		{"control wait", controlCode, 6, 7, false},
	} {
		l, err := extract(c.code())
		if err != nil {
			t.Fatal(err)
		}
		for at := l.labels[c.from]; at < l.labels[c.to]; {
			inst, err := x86asm.Decode(l.code[at:], 64)
			if err != nil {
				t.Fatal(err)
			}
			switch inst.Op {
			case x86asm.SYSCALL, x86asm.PAUSE, x86asm.CPUID, x86asm.HLT, x86asm.IN, x86asm.OUT:
				t.Errorf("%s at %#x: %v leaves the guest", c.name, at, inst)
			}
			for _, a := range inst.Args {
				m, ok := a.(x86asm.Mem)
				if ok && inst.Op != x86asm.LEA && inst.Op != x86asm.NOP && (m.Base != x86asm.R14 || !c.mayRecord) {
					t.Errorf("%s at %#x: %v touches memory", c.name, at, inst)
				}
			}
			at += inst.Len
		}
	}
}

func TestHeaderMatchesGo(t *testing.T) {
	text, err := os.ReadFile("blob_amd64.h")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, m := range regexp.MustCompile(`(?m)^#define ([A-Z_0-9]+) (0x[0-9a-f]+|[0-9]+)$`).FindAllStringSubmatch(string(text), -1) {
		v, err := strconv.ParseUint(m[2], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		got[m[1]] = v
	}
	want := map[string]uint64{
		"PARAMS": ParamsAddr, "RECORD": RecordAddr, "P_STEPS": stepsAt, "P_SCRATCH": scratchAt,
		"OP_END": opEnd, "OP_SYSCALL": opSyscall, "OP_CPUID": opCPUID, "OP_TOUCH": opTouch, "OP_SEAL": opSeal,
		"CHECK_NONE": checkNone, "CHECK_OK": checkOK, "CHECK_VALUE": checkValue, "BASE_SAVE": baseSave, "BASE_ADD": baseAdd,
		"R_SIZE": uint64(reflect.TypeFor[abi.GapRecord]().Size()), "R_LASTBUCKET": abi.GapBuckets - 1, "R_RINGMASK": abi.GapRing - 1,
		"SYS_WRITE": 1, "SYS_EXIT_GROUP": 231, "SYS_ISOLATE": abi.SysIsolate, "SYS_GAPRECORD": abi.SysGapRecord, "SYS_SAFEPOINT": abi.SysSafepoint,
		"CONTROL": ControlAddr, "C_KEPT": ControlKept, "C_MASK": ControlKept - 1, "H_SIZE": uint64(reflect.TypeFor[ControlChange]().Size()), "RATE_LIMIT": rateLimit,
		"SURVIVED": Survived, "REFUSED": Refused, "S_SIZE": uint64(reflect.TypeFor[step]().Size()),
	}
	// Every P_, S_ and R_ that is left is the offset of the field of that name.
	offsets := func(prefix string, typ reflect.Type) {
		fields := map[string]reflect.StructField{}
		for i := range typ.NumField() {
			fields[prefix+strings.ToUpper(typ.Field(i).Name)] = typ.Field(i)
		}
		for name := range got {
			if _, done := want[name]; done || !strings.HasPrefix(name, prefix) {
				continue
			}
			if n, ok := strings.CutPrefix(name, "S_ARG"); ok {
				i, err := strconv.Atoi(n)
				if err != nil {
					t.Fatal(err)
				}
				want[name] = uint64(fields["S_ARGS"].Offset) + 8*uint64(i)
			} else if f, ok := fields[name]; ok {
				want[name] = uint64(f.Offset)
			} else {
				t.Errorf("%s names no field of %v", name, typ)
			}
		}
	}
	offsets("P_", reflect.TypeFor[params]())
	offsets("S_", reflect.TypeFor[step]())
	offsets("R_", reflect.TypeFor[abi.GapRecord]())
	offsets("C_", reflect.TypeFor[ControlRecord]())
	offsets("H_", reflect.TypeFor[ControlChange]())
	for name, v := range got {
		if w, ok := want[name]; !ok || w != v {
			t.Errorf("blob_amd64.h: %s is %#x, Go has %#x (known: %v)", name, v, w, ok)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("blob_amd64.h lacks %s", name)
		}
	}
	if r := reflect.TypeFor[params](); r.Size() != abi.Page {
		t.Errorf("params has %d bytes", r.Size())
	}
	if r := reflect.TypeFor[ControlRecord](); r.Size() > abi.Page || r.Size() != uintptr(binary.Size(ControlRecord{})) {
		t.Errorf("ControlRecord has %d bytes, %d in the program", r.Size(), binary.Size(ControlRecord{}))
	}
	if reflect.TypeFor[abi.GapRecord]().Size() != recordSize || recordSize > recordPages*abi.Page {
		t.Errorf("recordSize is %d", recordSize)
	}
}

// every is one ELF of each kind.
func every(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, p := range programs() {
		all[p.name] = mustELF(t, p.name)
	}
	for _, f := range Faults() {
		all[faultPrefix+f.Name] = mustELF(t, faultPrefix+f.Name)
	}
	return all
}

// testHz makes one cycle of the programs' options one nanosecond.
const testHz = 1_000_000_000

func mustELF(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	b, err := ELF(name, args, testHz)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestImage(t *testing.T) {
	for name, b := range every(t) {
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
			t.Errorf("%s: %v", name, f.FileHeader)
		}
		var loads []elf.ProgHeader
		stack := false
		for _, p := range f.Progs {
			switch p.Type {
			case elf.PT_LOAD:
				loads = append(loads, p.ProgHeader)
				if p.Off%abi.Page != p.Vaddr%abi.Page || p.Off+p.Filesz > uint64(len(b)) {
					t.Errorf("%s: segment %+v", name, p.ProgHeader)
				}
			case elf.PT_GNU_STACK:
				stack = p.Flags == elf.PF_R|elf.PF_W
			case elf.PT_NOTE:
			default:
				t.Errorf("%s: a %v", name, p.Type)
			}
		}
		if len(loads) != 2 || loads[0].Flags != elf.PF_R|elf.PF_X || loads[1].Flags != elf.PF_R|elf.PF_W || !stack {
			t.Errorf("%s: segments %+v, stack %v", name, loads, stack)
		}
		if f.Entry < TextAddr || f.Entry >= loads[0].Vaddr+loads[0].Memsz {
			t.Errorf("%s: entry %#x", name, f.Entry)
		}
		symbols, err := f.Symbols()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		at := map[string]elf.Symbol{}
		for _, s := range symbols {
			at[s.Name] = s
			sec := f.Sections[s.Section]
			if s.Value < sec.Addr || s.Value+s.Size > sec.Addr+sec.Size {
				t.Errorf("%s: symbol %+v outside %s", name, s, sec.Name)
			}
		}
		if at["gap_record"].Value != RecordAddr || at["gap_record"].Size != recordSize || at["_start"].Value != f.Entry {
			t.Errorf("%s: symbols %+v", name, at)
		}
		want := strings.NewReplacer("@fault:", "fault_", "@", "", "-", "_").Replace(name)
		switch name {
		case "@spin", "@jitter":
			want += "_loop"
		case "@cyclic":
			want += "_wait"
		case "@exits":
			want += "_syscall"
		case "@control-loop":
			want = "control_wait"
		default:
			if at[want].Value != f.Entry {
				t.Errorf("%s: enters at %#x and not at %s", name, f.Entry, want)
			}
		}
		if _, ok := at[want]; !ok {
			t.Errorf("%s: no symbol %s", name, want)
		}
	}
}
