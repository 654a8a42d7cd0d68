package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
)

// A test that fails once is run again, by itself, and the table names it; one that fails twice, or has company, fails the lane.
func TestRunAgain(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	for _, c := range []struct {
		name, fails    string // which tests fail: at the first run, at every run
		ok             bool
		passed, failed int
		again          string
	}{
		{"once", `"TestA": once`, true, 3, 0, "chance TestA"},
		{"always", `"TestA": true`, false, 2, 1, "chance TestA"},
		{"one of two", `"TestA": once, "TestB": true`, false, 2, 1, "chance TestA TestB"},
		{"never", ``, true, 3, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv(testenv.LaneVar, "unit")
			t.Setenv("GOFLAGS", "-mod=mod")
			t.Chdir(dir)
			source := `package chance
import ("os"; "testing")
func first() bool { _, err := os.Stat("ran"); return err != nil }
var once = first()
var fails = map[string]bool{` + c.fails + `}
func TestMain(m *testing.M) { code := m.Run(); os.WriteFile("ran", nil, 0o600); os.Exit(code) }
func TestA(t *testing.T) { if fails[t.Name()] { t.Error("no") } }
func TestB(t *testing.T) { if fails[t.Name()] { t.Error("no") } }
func TestC(t *testing.T) { }
`
			for name, text := range map[string]string{"go.mod": "module chance\n", "chance_test.go": source} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ok, err := goTest("unit", "events.json", []string{"-short", "./..."})
			if err != nil || ok != c.ok {
				t.Errorf("%v, %v, want %v", ok, err, c.ok)
			}
			f, err := os.Open("events.json")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			l, err := lanes.Read(f)
			if err != nil || l.Passed != c.passed || l.Failed != c.failed || strings.Join(l.Again, "; ") != c.again {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
}

// TestAgain: a lane of the lab may be run again if tests failed, and not if its machine did.
func TestAgain(t *testing.T) {
	const failed = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}
`
	for what, c := range map[string]struct {
		text string
		want bool
	}{
		"a test":             {failed, true},
		"nothing":            {`{"Action":"pass","Package":"p"}` + "\n", false},
		"the machine":        {`{"Action":"output","Package":"p","Output":"FAIL\tp [guest panic]\n"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n", false},
		"both":               {failed + `{"Action":"fail","Package":"q"}` + "\n", false},
		"a test that hung":   {`{"Action":"run","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n", false},
		"a race, and a test": {`{"Action":"output","Package":"p","Test":"TestA","Output":"WARNING: DATA RACE\n"}` + "\n" + failed, false},
		"not built":          {`{"Action":"build-fail","ImportPath":"p"}` + "\n" + failed, false},
	} {
		file := filepath.Join(t.TempDir(), "lane.json")
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if ok, err := run([]string{"again", file}); err != nil || ok != c.want {
			t.Errorf("%s: %v, %v", what, ok, err)
		}
	}
	if _, err := run([]string{"again", filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a lane that left no file may be run again")
	}
}
