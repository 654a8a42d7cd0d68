package build

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/cloister-vmm/cloister/guest/workload"
)

// TestSDK plans for what the SDK's header declares, and for the built-in program that declares the same.
func TestSDK(t *testing.T) {
	sdk, err := filepath.Abs("../../guest/sdk/c")
	if err != nil {
		t.Fatal(err)
	}
	builtin, err := workload.ELF("@control-loop", nil, 1_000_000_000)
	if err != nil {
		t.Fatal(err)
	}
	include := func(file string) map[string]string {
		return map[string]string{"new.c": "#include \"" + filepath.Join(sdk, "example", file) + "\"\n"}
	}
	object := compile(t, "gcc", include("new_filter.c"), "-O2", "-c")
	programs := map[string][]byte{"@control-loop": builtin}
	for _, b := range builds {
		programs[b.name] = compile(t, b.cc, include("control_loop.c"), "-O2", "-Wall", "-Werror")
	}
	for name, file := range programs {
		t.Run(name, func(t *testing.T) {
			p := atRestProgram(t, file)
			l := p.List()
			values := map[string]string{}
			for _, s := range l.Sites {
				values[s.Name] = s.Value + s.Error
			}
			if values["rate.limit"] != "0x3e8" || values["output.off"] != "off" || len(values) != 2 || len(l.SafeWords) != 1 || !p.notes.patchable {
				t.Errorf("declared %v, %+v", values, l)
			}
			if !slices.ContainsFunc(l.Functions, func(f Function) bool { return f.Name == "filter" }) {
				t.Errorf("functions %+v", l.Functions)
			}
			b := replaceWith(object)
			b.Set = []Set{{"rate.limit", "500"}, {"output.off", "on"}}
			m, err := p.Plan(b)
			if err != nil {
				t.Fatal(err)
			}
			soundPlan(t, p, m)
			if len(m.Plan.Sites) < 3 {
				t.Errorf("sites %+v", m.Plan.Sites)
			}
			for _, s := range m.Plan.Sites {
				// The header promises it for all but the jump of a function.
				if s.Kind != "redirect" && s.Kind != "branch" && (s.Addr+1)/8 != (s.Addr+4)/8 {
					t.Errorf("the immediate of %s at %#x crosses an 8-byte border", s.Name, s.Addr)
				}
			}
		})
	}
}
