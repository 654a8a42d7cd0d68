package policy

import (
	"fmt"
	"os/exec"
	"path"
	"sort"
	"strconv"
	"strings"
	"testing"
)

// order is the partial order of our packages, written as bans with their reasons:
//
//	WHO [except WHO…] !> WHAT [but WHAT…] : reason
//
// WHO is a folder, or folder/... for it and all below; `...` is everything. WHAT is the same, or an
// import path after std: or ext:. A ban on one of our packages holds for what is reached through others
// too; a ban on std: or ext: holds for the file that imports it. Tests are free (they compose), but not
// of ext: bans.
//
// From the bottom up: guest/abi and isolation/breaks know nothing; firmware is data; internal/kvm makes
// the ioctls; vcpu runs one thread on one core; vmm makes a machine of them; observe, jitter and
// isolation look on from the side; cmd puts it together.
const order = `
guest/abi            !> ...                                          : the contract of guest and host; loaders, stubs, SDKs and tools must all be able to import it
isolation/breaks     !> ... but guest/abi                            : any thread of any process can keep such a ledger, virtual machine or not (review, point 5)
firmware/...         !> ... but guest/abi firmware/...               : pure data, testable without KVM and without root
internal/kvm/...     !> ... but internal/kvm/...                     : the lowest layer: ioctls and layouts, no policy
internal/testenv/... !> ... but internal/testenv/...                 : the tests of every package import it; an import of ours would be a cycle
internal/block       !> ...                                          : how a goroutine sleeps in a host call; anybody may have to
vcpu/...             !> ... but vcpu/... internal/kvm/... internal/block guest/abi isolation/breaks : a thread and its loop; what it runs and who watches is not its business
guest/...            !> vmm/... vcpu/... internal/kvm/... observe/... jitter/... patch/... : loading and the Linux ABI are tested without a VM
isolation/...        !> vmm/... vcpu/... internal/... guest/... firmware/... virtio/... patch/... observe/... but guest/abi : it serves any process that wants a quiet core, not only ours (review, point 5)
isolation/host/...   !> isolation/breaks isolation/doctor/...        : what writes to the host knows neither ledgers nor opinions
cmd/cloister cmd/internal/engine !> isolation/host/... isolation/doctor/... : the engine starts fast and stays still; the monitor changes the host (decision 0006)
observe/...          !> vmm/... vcpu/... internal/kvm/... patch/...  : it reads snapshots; what it cannot reach it cannot slow
jitter/...           !> vmm/... vcpu/... internal/kvm/... observe/... : the same sampler and histogram serve the bare-metal side
virtio/...           !> vmm/... vcpu/... internal/kvm/... observe/... : a device sees memory and interrupts as interfaces, and is fuzzed without a VM
patch/build          !> ... but patch guest/abi                      : it reads hostile files for whoever asks, and needs no machine
patch                !> patch/build                                  : what stands beside the sealed vCPUs decodes nothing (decision 0011)
patch/...            !> observe/... jitter/...                       : patching needs a stop, not an audience
patch/... except patch/running !> vmm/... vcpu/... internal/...      : plans are made, checked and logged without KVM; patch/running is the adapter
vmm/...              !> observe/... jitter/... patch/...             : a machine does not know who looks at it
lab/...              !> vmm/... vcpu/... internal/kvm/... guest/... : the lab runs what users run; what it linked would be something else
... except cmd/...   !> cmd/...                                      : only cmd composes
... except internal/kvm/... !> ext:github.com/bobuhiro11/gokvm/...   : its wrapper loses results on goroutine stacks and hides EINTR; internal/kvm/doc.go says which calls are sound
internal/kvm/...     !> ext:github.com/bobuhiro11/gokvm/machine ext:github.com/bobuhiro11/gokvm/virtio ext:github.com/bobuhiro11/gokvm/vmm ext:github.com/bobuhiro11/gokvm/pci : a guest can crash their process
... except observe/... !> ext:github.com/prometheus/...              : metrics are one place's business
vcpu/... isolation/... !> std:log std:log/slog                       : evidence comes from counters and tracepoints, not from prints (review, point 3)
vcpu/...             !> std:net std:net/http std:encoding/json       : nothing on the loop's side formats or talks
`

type ban struct {
	who, except, what, but []string
	reason                 string
}

func parseOrder(text string) ([]ban, error) {
	var bans []ban
	for _, line := range strings.Split(text, "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		left, reason, ok := strings.Cut(line, " : ")
		who, what, ok2 := strings.Cut(left, "!>")
		if !ok || !ok2 || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("import order, %q: want WHO !> WHAT : reason", line)
		}
		b := ban{reason: strings.TrimSpace(reason)}
		b.who, b.except = cutFields(who, "except")
		b.what, b.but = cutFields(what, "but")
		bans = append(bans, b)
	}
	return bans, nil
}

func cutFields(s, word string) (before, after []string) {
	before = strings.Fields(s)
	for i, f := range before {
		if f == word {
			return before[:i], before[i+1:]
		}
	}
	return before, nil
}

func matchAny(patterns []string, pkg string) bool {
	for _, p := range patterns {
		base, deep := strings.CutSuffix(p, "...")
		base = strings.TrimSuffix(base, "/")
		if pkg == base || deep && (base == "" || strings.HasPrefix(pkg, base+"/")) {
			return true
		}
	}
	return false
}

// imports gives the imports of every package of ours, by folder, as the files say it, and for each the
// file that says so. Build constraints are ignored on purpose: a ban holds on every platform.
func (t *tree) imports(files []string) map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, p := range files {
		dir := path.Dir(p)
		if out[dir] == nil {
			out[dir] = map[string]string{}
		}
		for _, im := range t.ast(p).Imports {
			if v, err := strconv.Unquote(im.Path.Value); err == nil {
				out[dir][v] = t.at(im)
			}
		}
	}
	return out
}

// reach gives every package of ours that dir imports, directly or not, with the path that leads there.
func reach(imports map[string]map[string]string, dir string) map[string]string {
	via := map[string]string{}
	var walk func(d, trail string)
	walk = func(d, trail string) {
		var next []string
		for im := range imports[d] {
			if own, ok := strings.CutPrefix(im, module+"/"); ok && via[own] == "" {
				next = append(next, own)
			}
		}
		sort.Strings(next)
		for _, n := range next {
			if via[n] == "" {
				via[n] = trail + " > " + n
				walk(n, via[n])
			}
		}
	}
	walk(dir, dir)
	return via
}

func checkImports(t *tree) []string {
	bans, err := parseOrder(order)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	product, all := t.imports(t.productGo()), t.imports(t.goFiles())
	for _, b := range bans {
		for dir := range all {
			if !matchAny(b.who, dir) || matchAny(b.except, dir) {
				continue
			}
			for own, trail := range reach(product, dir) {
				if own != dir && matchAny(b.what, own) && !matchAny(b.but, own) {
					out = append(out, fmt.Sprintf("%s must not import %s (%s): %s", dir, own, trail, b.reason))
				}
			}
			for _, w := range b.what {
				if std, ok := strings.CutPrefix(w, "std:"); ok && product[dir][std] != "" {
					out = append(out, fmt.Sprintf("%s: %s must not import %s: %s", product[dir][std], dir, std, b.reason))
				}
				if ext, ok := strings.CutPrefix(w, "ext:"); ok {
					for im, at := range all[dir] {
						if matchAny([]string{ext}, im) {
							out = append(out, fmt.Sprintf("%s: %s must not import %s: %s", at, dir, im, b.reason))
						}
					}
				}
			}
		}
	}
	sort.Strings(out)
	return out
}

// checkCgo: Cloister is built with the Go toolchain alone.
func checkCgo(t *tree) []string {
	var out []string
	for _, p := range t.goFiles() {
		for _, im := range t.ast(p).Imports {
			if im.Path.Value == `"C"` {
				out = append(out, t.at(im)+`: import "C": Cloister builds with CGO_ENABLED=0; use assembly or x/sys`)
			}
		}
	}
	return out
}

// TestImportsAgreeWithGoList guards the rule against blindness: whatever `go list -deps` reaches, the
// rule's own parsing must reach too.
func TestImportsAgreeWithGoList(t *testing.T) {
	tr := repository(t)
	product := tr.imports(tr.productGo())
	cmd := exec.Command("go", "list", "-e", "-deps", "-f", `{{if not .Standard}}{{.ImportPath}} {{join .Deps " "}}{{end}}`, "./...")
	cmd.Dir = root(t)
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps ./...: %v", err)
	}
	seen := 0
	for _, line := range strings.Split(string(raw), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], module+"/") {
			continue
		}
		seen++
		dir := strings.TrimPrefix(f[0], module+"/")
		ours := reach(product, dir)
		for _, d := range f[1:] {
			if own, ok := strings.CutPrefix(d, module+"/"); ok && ours[own] == "" {
				t.Errorf("%s reaches %s by go list, but not by the rule's own parsing", dir, own)
			}
		}
	}
	if seen == 0 {
		t.Error("go list -deps ./... shows no package of ours")
	}
}
