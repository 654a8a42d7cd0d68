package vfs

import (
	"sync"
	"testing"
)

// /dev, /proc and /sys are made when they are first looked into, once, whoever looks; every entry has an inode number of
// its own, also where a mount had to look before the numbers were given.
func TestLateDirectories(t *testing.T) {
	for name, mounts := range map[string][]Mount{"plain": nil, "mount below": {{Host: t.TempDir(), Guest: "/sys/here"}}} {
		t.Run(name, func(t *testing.T) {
			f, err := New(mounts, Options{CPUs: 40})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if f.ns.children["proc"].children != nil {
				t.Error("/proc was made before anybody looked")
			}
			var all [8]map[uint64]string
			var wg sync.WaitGroup
			for i := range all {
				all[i] = map[uint64]string{}
				wg.Go(func() { inodes(t, f.ns, "", all[i]) })
			}
			wg.Wait()
			for _, m := range all {
				if len(m) < 500 || len(m) != len(all[0]) {
					t.Fatalf("%d entries, want more than 500, and the same for every reader: %d", len(m), len(all[0]))
				}
				for ino, path := range m {
					if all[0][ino] != path {
						t.Fatalf("inode %d is %q and %q", ino, path, all[0][ino])
					}
				}
			}
		})
	}
}

// inodes collects what lies below n and does not change.
func inodes(t *testing.T, n *node, path string, to map[uint64]string) {
	if other, twice := to[n.ino]; n.ino == 0 || twice {
		t.Errorf("%s has inode %d, as has %q", path, n.ino, other)
	}
	to[n.ino] = path
	if n.kind != nodeDir || n.entry != nil {
		return
	}
	for _, name := range n.list() {
		inodes(t, n.child(name), path+"/"+name, to)
	}
}
