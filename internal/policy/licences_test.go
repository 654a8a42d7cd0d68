package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
)

// compatible are the licences that may be combined with Apache-2.0 in one binary (the Apache Software
// Foundation's category A).
var compatible = map[string]bool{"Apache-2.0": true, "MIT": true, "BSD-2-Clause": true, "BSD-3-Clause": true, "ISC": true}

// identify names the licence of a text by sentences that only it has; "" when none fits.
func identify(text string) string {
	s := strings.Join(strings.Fields(text), " ")
	has := func(sub string) bool { return strings.Contains(s, sub) }
	switch {
	case has("GNU GENERAL PUBLIC LICENSE"), has("GNU LESSER GENERAL PUBLIC LICENSE"), has("GNU AFFERO GENERAL PUBLIC LICENSE"):
		return "GPL family"
	case has("Mozilla Public License"):
		return "MPL"
	case has("Apache License Version 2.0"):
		return "Apache-2.0"
	case has("Permission is hereby granted, free of charge, to any person obtaining a copy"):
		return "MIT"
	case has("Redistribution and use in source and binary forms") && (has("Neither the name") || has("names of its contributors")):
		return "BSD-3-Clause"
	case has("Redistribution and use in source and binary forms"):
		return "BSD-2-Clause"
	case has("Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"):
		return "ISC"
	}
	return ""
}

var noticeRow = regexp.MustCompile(`(?m)^    (\S+)\s+(\S+)$`)

// compareNotice holds NOTICE against the modules that go.mod requires. found: licence by module, "" where
// the module's text is not on this machine.
func compareNotice(notice string, found map[string]string) (out []string) {
	rows := map[string]string{}
	for _, m := range noticeRow.FindAllStringSubmatch(notice, -1) {
		rows[m[1]] = m[2]
	}
	for mod, lic := range found {
		said, ok := rows[mod]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("NOTICE: add a row for %s, which go.mod requires: `    %s  %s` (`make notice`)", mod, mod, lic))
		case !compatible[said]:
			out = append(out, fmt.Sprintf("NOTICE: %s: licence %s may not be combined with Apache-2.0 here", mod, said))
		case lic != "" && lic != said:
			out = append(out, fmt.Sprintf("NOTICE: %s is said to be %s, but its text is %s", mod, said, lic))
		}
	}
	for mod := range rows {
		if _, ok := found[mod]; !ok {
			out = append(out, fmt.Sprintf("NOTICE: go.mod does not require %s any more: drop its row (`make notice`)", mod))
		}
	}
	return out
}

// rewriteNotice is `make notice`: the rows follow go.mod. What a row said stays where the module's text
// is not on this machine.
func rewriteNotice(notice []byte, found map[string]string) []byte {
	said := map[string]string{}
	for _, m := range noticeRow.FindAllStringSubmatch(string(notice), -1) {
		said[m[1]] = m[2]
	}
	var rows []string
	for mod, lic := range found {
		rows = append(rows, fmt.Sprintf("    %-50s %s", mod, cmp.Or(lic, said[mod], "unknown")))
	}
	sort.Strings(rows)
	at := noticeRow.FindAllIndex(notice, -1)
	if len(at) == 0 {
		return append(notice, strings.Join(rows, "\n")+"\n"...)
	}
	from, to := at[0][0], at[len(at)-1][1]
	return slices.Concat(notice[:from], []byte(strings.Join(rows, "\n")), notice[to:])
}

func TestCompareNotice(t *testing.T) {
	const notice = "Uses:\n    a.org/good    MIT\n    a.org/lies    MIT\n    a.org/copyleft    GPL-3.0-only\n    a.org/gone    MIT\n"
	found := map[string]string{"a.org/good": "MIT", "a.org/lies": "BSD-3-Clause", "a.org/copyleft": "", "a.org/new": "MIT"}
	got := strings.Join(compareNotice(notice, found), "\n")
	for _, want := range []string{"a.org/lies is said to be MIT", "a.org/copyleft: licence GPL-3.0-only may not", "require a.org/gone any more", "add a row for a.org/new"} {
		if !strings.Contains(got, want) {
			t.Errorf("does not see %q in:\n%s", want, got)
		}
	}
	again := rewriteNotice([]byte(notice), map[string]string{"a.org/good": "", "a.org/new": "ISC"})
	if v := compareNotice(string(again), map[string]string{"a.org/good": "MIT", "a.org/new": "ISC"}); len(v) > 0 || !strings.HasPrefix(string(again), "Uses:\n") {
		t.Errorf("rewritten: %q in:\n%s", v, again)
	}
	if strings.Count(got, "\n") != 3 || strings.Contains(got, "a.org/good") {
		t.Errorf("says too much:\n%s", got)
	}
}

// TestLicences looks only at what the module cache holds: it makes no download.
func TestLicences(t *testing.T) {
	dir := root(t)
	run := func(args ...string) []byte {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	var gomod struct {
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal(run("mod", "edit", "-json"), &gomod); err != nil {
		t.Fatal(err)
	}
	cache := strings.TrimSpace(string(run("env", "GOMODCACHE")))
	found, read := map[string]string{}, 0
	for _, r := range gomod.Require {
		found[r.Path] = ""
		// The cache's folder of a module: capitals are written as ! and the small letter.
		esc := regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(r.Path+"@"+r.Version, func(s string) string { return "!" + strings.ToLower(s) })
		files, err := filepath.Glob(filepath.Join(cache, filepath.FromSlash(esc), "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			base := strings.ToUpper(filepath.Base(f))
			if strings.HasPrefix(base, "LICENSE") || strings.HasPrefix(base, "LICENCE") || strings.HasPrefix(base, "COPYING") {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				found[r.Path], read = identify(string(text)), read+1
				break
			}
		}
	}
	t.Logf("%d modules required, %d licence texts read", len(found), read)
	notice, err := os.ReadFile(filepath.Join(dir, "NOTICE"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("CLOISTER_WRITE") == "notice" {
		notice = rewriteNotice(notice, found)
		if err := os.WriteFile(filepath.Join(dir, "NOTICE"), notice, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range compareNotice(string(notice), found) {
		t.Error(v)
	}
	licence, err := os.ReadFile(filepath.Join(dir, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	if got := identify(string(licence)); got != "Apache-2.0" {
		t.Errorf("LICENSE: its text is %q, not Apache-2.0", got)
	}
}
