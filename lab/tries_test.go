package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
	"github.com/cloister-vmm/cloister/lab/wire"
)

// A hang of the emulator costs a boot and is named; it neither loses what failed nor turns another fault into a pass.
func TestTries(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	const (
		// n is the number of this boot, kept beside the script.
		count = `D=$(dirname "$0"); n=$(($(cat $D/n 2>/dev/null || echo 0) + 1)); echo $n > $D/n` + "\n"
		hello = `echo '{"Kind":"hello"}' > $M` + "\n"
		begin = `echo '{"Kind":"start"}' > $M; echo '{"Kind":"line","Text":"=== RUN   TestA"}' > $M` + "\n"
		pass  = `echo '{"Kind":"line","Text":"--- PASS: TestA (0.00s)"}' > $M; echo '{"Kind":"line","Text":"PASS"}' > $M` + "\n"
		fail  = `echo '{"Kind":"line","Text":"--- FAIL: TestA (0.00s)"}' > $M; echo '{"Kind":"line","Text":"=== RUN   TestB"}' > $M` + "\n"
		done  = `echo '{"Kind":"end"}' > $M; echo '{"Kind":"done"}' > $M` + "\n"
		stale = "echo '[ 9.1]  asm_exc_int3+0x35/0x40' > $C\nexec sleep 1000\n"
	)
	for _, c := range []struct {
		name, script           string
		boots                  int
		passed, failed, begins int // of the table; begins: "started again"
		err                    error
	}{
		{"at once", count + hello + begin + pass + done, 1, 1, 0, 0, nil},
		{"hangs once", count + hello + begin + "if [ $n = 1 ]; then\n" + stale + "fi\n" + pass + done, 2, 1, 0, 1, nil},
		{"hangs after a pass", count + hello + begin + pass + "if [ $n = 1 ]; then\n" + stale + "fi\n" + done, 2, 1, 0, 1, nil},
		{"never up", count + "if [ $n = 1 ]; then exec sleep 1000; fi\n" + hello + begin + pass + done, 2, 1, 0, 1, nil},
		{"hangs always", count + hello + begin + stale, 3, 0, 1, 2, ErrEmulator},
		{"hangs after a failure", count + hello + begin + fail + stale, 1, 0, 2, 0, ErrEmulator},
		{"another hang", count + hello + begin + "exec sleep 1000", 1, 0, 1, 0, ErrGuest},
		{"panics", count + hello + begin + "echo 'Kernel panic - not syncing: x' > $C", 1, 0, 1, 0, ErrGuest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("PATH", os.Getenv("PATH"))
			b := fakeQEMU(t, c.script)
			b.disk = b.dir + "/disk"
			events := eventsFile(t)
			var shown, notes bytes.Buffer
			r := &results{out: events, show: lanes.NewShow(&shown), tasks: []wire.Task{{Name: "p"}}}
			if err := r.header("lab", "6.1", SVM); err != nil {
				t.Fatal(err)
			}
			boots := 1
			_, err := r.tries(context.Background(), b, 2, func(f string, a ...any) {
				if strings.HasPrefix(f, "booting again") {
					boots++
				}
				notes.WriteString(f)
			})
			if !errors.Is(err, c.err) || c.err == ErrGuest && errors.Is(err, ErrEmulator) || (err == nil) != (c.err == nil) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if boots != c.boots {
				t.Errorf("%d boots, want %d", boots, c.boots)
			}
			l, err := lanes.Read(events.rewound(t))
			if err != nil || l.Passed != c.passed || l.Failed != c.failed || len(l.Retries) != c.begins {
				t.Errorf("%d passed, %d failed, retries %q, %v; want %d, %d, %d", l.Passed, l.Failed, l.Retries, err, c.passed, c.failed, c.begins)
			}
			for _, why := range l.Retries {
				if !strings.Contains(why, "the emulator hung") || strings.Contains(why, "\n") {
					t.Errorf("a retry is told as %q", why)
				}
			}
		})
	}
}
