package host_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/tools/txtar"
)

// A plan is made by reading alone, so it can be made of a recorded machine as well as of this one (host.Live{Root: "/"}). A
// whole program that pins, isolates, watches and gives back is isolation/example/quietloop.
func ExampleMake() {
	root, err := recorded("four.txtar")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	plan, err := host.Make(host.Live{Root: root}, filepath.Join(root, "journal"), host.Request{CPUs: []int{3}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("quiet:", plan.CPUs, "for the rest:", plan.Housekeeping)
	for _, step := range plan.Steps {
		if name := step.Setting.Name; strings.HasSuffix(name, "stat_interval") || strings.Contains(name, "irq/24/") {
			fmt.Println(step)
		}
	}
	// Output:
	// quiet: [3] for the rest: [0 1 2]
	// /proc/irq/24/smp_affinity_list: 0-3 -> 0-2
	// /proc/sys/vm/stat_interval: 1 -> 120
}

// recorded lays a machine of testdata out in a directory.
func recorded(name string) (root string, err error) {
	a, err := txtar.ParseFile(filepath.Join("testdata", name))
	if err != nil {
		return "", err
	}
	if root, err = os.MkdirTemp("", "machine"); err != nil {
		return "", err
	}
	for _, f := range a.Files {
		p := filepath.Join(root, f.Name)
		if err = os.MkdirAll(filepath.Dir(p), 0o755); err == nil {
			err = os.WriteFile(p, f.Data, 0o644)
		}
		if err != nil {
			return root, err
		}
	}
	return root, nil
}
