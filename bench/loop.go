package main

import (
	"bufio"
	"bytes"
	"fmt"
)

// hotLoop runs c/hot.c natively and in the guest, on the same core.
func (b *bench) hotLoop() error {
	var names []string
	took := map[string]*[2]samples{}
	for i := range max(b.rounds, 8) {
		for side := range 2 {
			var out []byte
			var err error
			guest := (i+side)%2 == 0
			if guest {
				out, err = b.cloister(patience, "--quiet", "--cpu", fmt.Sprint(b.cpu), b.path("hot"))
			} else {
				out, err = b.runOn(b.cpu, patience, b.path("hot"))
			}
			if err != nil {
				return err
			}
			sc := bufio.NewScanner(bytes.NewReader(out))
			for sc.Scan() {
				var name string
				var ns float64
				if _, err := fmt.Sscan(sc.Text(), &name, &ns); err != nil {
					return fmt.Errorf("hot: %q: %w", sc.Text(), err)
				}
				t := took[name]
				if t == nil {
					t = new([2]samples)
					took[name] = t
					names = append(names, name)
				}
				if guest {
					t[0] = append(t[0], ns)
				} else {
					t[1] = append(t[1], ns)
				}
			}
		}
	}
	for _, n := range names {
		t := took[n]
		for _, q := range []struct {
			name string
			at   float64
		}{{"best", 0}, {"median of the runs' best", 0.5}} {
			b.rows = append(b.rows, Row{What: "hot loop " + n + ", " + q.name, Ours: t[0].quantile(q.at) / 1e3, Base: t[1].quantile(q.at) / 1e3,
				Unit: "µs", Limit: 1.02, N: len(t[0])})
		}
	}
	return nil
}
