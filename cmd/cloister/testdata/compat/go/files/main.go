// Files uses os, io/fs, bufio and their neighbours below the directory that it is given, and pipes of its own.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

func must[T any](v T, err error) T {
	try(err)
	return v
}

func try(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func describe(root string) {
	try(filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := must(filepath.Rel(root, p))
		if d.IsDir() {
			fmt.Println(name, info.Mode())
		} else {
			fmt.Println(name, info.Mode(), info.Size(), info.ModTime().Unix() > 1.6e9)
		}
		return nil
	}))
}

func main() {
	root := filepath.Join(os.Args[1], "tree")
	try(os.MkdirAll(filepath.Join(root, "a", "b"), 0o755))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			try(os.WriteFile(filepath.Join(root, "a", fmt.Sprintf("%02d", i)), bytes.Repeat([]byte{byte(i)}, i*997), 0o640))
		}()
	}
	wg.Wait()
	try(os.Symlink("00", filepath.Join(root, "a", "link")))
	try(os.Rename(filepath.Join(root, "a", "07"), filepath.Join(root, "a", "b", "seven")))
	try(os.Chmod(filepath.Join(root, "a", "08"), 0o400))
	when := time.Unix(1_700_000_000, 123456789)
	try(os.Chtimes(filepath.Join(root, "a", "09"), when, when))
	fmt.Println(must(os.Stat(filepath.Join(root, "a", "09"))).ModTime().UTC())
	describe(root)

	f := must(os.OpenFile(filepath.Join(root, "log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600))
	w := bufio.NewWriterSize(f, 333)
	for i := range 5000 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	try(w.Flush())
	try(f.Sync())
	part := make([]byte, 20)
	n, err := f.ReadAt(part, 1000)
	fmt.Printf("%d %v %q\n", n, err, part)
	fmt.Println(must(f.Seek(-10, io.SeekEnd)), string(must(io.ReadAll(f))))
	try(f.Truncate(100))
	fmt.Println(must(f.Stat()).Size(), f.Close(), f.Close())

	packed := must(os.Create(filepath.Join(root, "all.tar.gz")))
	z := gzip.NewWriter(packed)
	t := tar.NewWriter(z)
	try(t.AddFS(os.DirFS(filepath.Join(root, "a", "b"))))
	try(errors.Join(t.Close(), z.Close(), packed.Close()))
	back := tar.NewReader(must(gzip.NewReader(bytes.NewReader(must(os.ReadFile(packed.Name()))))))
	for {
		h, err := back.Next()
		if err == io.EOF {
			break
		}
		try(err)
		sum := sha256.New()
		fmt.Println(h.Name, must(io.Copy(sum, back)), fmt.Sprintf("%x", sum.Sum(nil)))
	}
	big := must(os.Create(filepath.Join(root, "big")))
	fmt.Println(must(io.Copy(big, io.LimitReader(strings.NewReader(strings.Repeat("0123456789", 500_000)), 4_999_999))))
	copied := must(os.Create(filepath.Join(root, "copy")))
	fmt.Println(must(big.Seek(0, io.SeekStart)), must(io.Copy(copied, big)), big.Close(), copied.Close())
	fmt.Printf("%x\n", sha256.Sum256(must(os.ReadFile(copied.Name()))))

	in, out, err := os.Pipe()
	try(err)
	go func() {
		e := json.NewEncoder(out)
		for i := range 3000 {
			try(e.Encode(map[string]int{"i": i}))
		}
		try(out.Close())
	}()
	sum := 0
	for d := json.NewDecoder(in); ; {
		var v struct{ I int }
		if err := d.Decode(&v); err == io.EOF {
			break
		} else {
			try(err)
		}
		sum += v.I
	}
	fmt.Println("pipe", sum)
	in, out, err = os.Pipe()
	try(err)
	try(in.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	_, err = in.Read(part)
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded), out.Close(), in.Close())

	for _, err := range []error{
		os.Mkdir(root, 0o755), os.Remove(root), os.Rename("nothere", "x"), os.Chdir("nothere"), func() error { _, err := os.Open("nothere"); return err }(),
	} {
		fmt.Println(strings.ReplaceAll(fmt.Sprint(err), root, "ROOT"), errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrNotExist))
	}
	confined := must(os.OpenRoot(root))
	_, err = confined.Open("../outside")
	fmt.Println(err, confined.Mkdir("inside", 0o700), confined.Close())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		fmt.Printf("%q\n", input.Text())
	}
	try(os.RemoveAll(root))
	_, err = os.Stat(root)
	fmt.Println(errors.Is(err, fs.ErrNotExist), len(os.Args), os.Getenv("LC_ALL"))
}
