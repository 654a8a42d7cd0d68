package lab

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// initramfs writes the archive of the machine's root file system. The newc format
// that the kernel unpacks is in Documentation/driver-api/early-userspace/buffer-format.rst.
//
// The first error sticks; Close returns it.
type initramfs struct {
	file *os.File
	buf  *bufio.Writer
	zip  *gzip.Writer // nil: not compressed
	w    *cpio.Writer
	dirs map[string]bool
	err  error
}

// newInitramfs starts an archive. Compressed, it is a fifth of the size and costs
// the guest the time to unpack it.
func newInitramfs(file string, compress bool) (*initramfs, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	a := &initramfs{file: f, buf: bufio.NewWriterSize(f, 1<<20), dirs: map[string]bool{".": true}}
	var out io.Writer = a.buf
	if compress {
		if a.zip, err = gzip.NewWriterLevel(out, gzip.BestSpeed); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		out = a.zip
	}
	a.w = cpio.NewWriter(out)
	return a, nil
}

func (a *initramfs) add(name string, mode cpio.FileMode, size int64, body io.Reader) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if a.err != nil || a.dirs[name] {
		return
	}
	if dir := path.Dir(name); !a.dirs[dir] {
		a.add(dir, cpio.TypeDir|0o755, 0, nil)
	}
	if mode&cpio.TypeDir != 0 {
		a.dirs[name] = true
	}
	if a.err == nil {
		a.err = a.w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: size, Links: 1})
	}
	if a.err == nil && body != nil {
		var n int64
		if n, a.err = io.Copy(a.w, body); a.err == nil && n != size {
			a.err = fmt.Errorf("initramfs: %s changed while it was read: %d of %d bytes", name, n, size)
		}
	}
}

func (a *initramfs) bytes(name string, mode cpio.FileMode, b string) {
	a.add(name, cpio.TypeReg|mode, int64(len(b)), strings.NewReader(b))
}

func (a *initramfs) link(name, target string) {
	a.add(name, cpio.TypeSymlink|0o777, int64(len(target)), strings.NewReader(target))
}

// copy adds a file of this machine with its permissions.
func (a *initramfs) copy(name, file string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(file)
	if err != nil {
		a.err = err
		return
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", file)
	}
	if err != nil {
		a.err = errors.Join(err, f.Close())
		return
	}
	a.add(name, cpio.TypeReg|cpio.FileMode(info.Mode().Perm()), info.Size(), f)
	if err := f.Close(); a.err == nil {
		a.err = err
	}
}

// tree adds a directory with all regular files below it that keep accepts.
func (a *initramfs) tree(name, dir string, keep func(rel string, d fs.DirEntry) bool) {
	if a.err != nil {
		return
	}
	a.err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if rel != "." && !keep(rel, d) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		switch {
		case d.IsDir():
			a.add(path.Join(name, filepath.ToSlash(rel)), cpio.TypeDir|0o755, 0, nil)
		case d.Type().IsRegular():
			a.copy(path.Join(name, filepath.ToSlash(rel)), file)
		}
		return a.err
	})
}

func (a *initramfs) Close() error {
	err := a.err
	if err == nil {
		err = a.w.Close()
	}
	if a.zip != nil && err == nil {
		err = a.zip.Close()
	}
	if err == nil {
		err = a.buf.Flush()
	}
	return errors.Join(err, a.file.Close())
}

// userland adds what every machine has besides the job: busybox under its names,
// and the few files that libraries look for.
func (a *initramfs) userland(ctx context.Context, busybox string) {
	if a.err != nil {
		return
	}
	list, err := command(ctx, busybox, "--list").Output()
	if err != nil {
		a.err = fmt.Errorf("%s --list: %w", busybox, err)
		return
	}
	a.copy("bin/busybox", busybox)
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			a.link("bin/"+applet, "busybox")
		}
	}
	a.link("sbin", "bin")
	a.add("usr", cpio.TypeDir|0o755, 0, nil)
	a.link("usr/bin", "../bin")
	a.link("usr/sbin", "../bin")
	a.bytes("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	a.bytes("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")
	a.bytes("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n")
	a.bytes("etc/profile", 0o644, "PS1='lab# '\n")
	a.add("root", cpio.TypeDir|0o700, 0, nil)
	a.add("dev", cpio.TypeDir|0o755, 0, nil)
}

// job adds the job.
func (a *initramfs) job(j wire.Job) {
	b, err := json.MarshalIndent(j, "", "\t")
	if err != nil {
		a.err = errors.Join(a.err, err)
		return
	}
	a.bytes(wire.JobPath, 0o644, string(b)+"\n")
}
