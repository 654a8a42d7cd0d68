package linux

import (
	"flag"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write docs/linux-abi.md")

const document = "../../docs/linux-abi.md"

// TestDocument holds the document to the table.
func TestDocument(t *testing.T) {
	want := tableText()
	if *update {
		if err := os.MkdirAll("../../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(document, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is stale: go test ./guest/linux -run TestDocument -update", document)
	}
}

// TestTable checks each line of the table by itself.
func TestTable(t *testing.T) {
	seen := map[uint64]string{}
	names := map[string]bool{}
	for _, part := range [][]call{fileCalls, socketCalls, processCalls, refusedCalls} {
		for _, c := range part {
			if seen[c.nr] != "" || names[c.name] {
				t.Errorf("%d %s: twice", c.nr, c.name)
			}
			seen[c.nr], names[c.name] = c.name, true
			if (c.fn == nil) == (c.errno == 0) {
				t.Errorf("%s: needs a handler or an errno, not both", c.name)
			}
			if c.level != Full && c.note == "" {
				t.Errorf("%s: level %s with note %q", c.name, c.level, c.note)
			}
		}
	}
	// x86-64 numbers without a gap, but for the one that arch-independent numbering left
	// (arch/x86/entry/syscalls/syscall_64.tbl).
	for nr := range uint64(unix.SYS_LISTNS + 1) {
		if (seen[nr] == "") != (nr > unix.SYS_UPROBE && nr < unix.SYS_PIDFD_SEND_SIGNAL) {
			t.Errorf("number %d: %q", nr, seen[nr])
		}
	}
	for nr, want := range map[uint64]string{0: "read", 231: "exit_group", 434: "pidfd_open", 0x434c00: "cloister_isolate", 400: "syscall_400", 1 << 63: "syscall_9223372036854775808"} {
		if got := Name(nr); got != want {
			t.Errorf("Name(%d) = %q, want %q", nr, got, want)
		}
	}
}
