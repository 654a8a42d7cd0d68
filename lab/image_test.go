package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/lab/wire"
)

func TestInitramfs(t *testing.T) {
	for _, compress := range []bool{false, true} {
		src := t.TempDir()
		for name, mode := range map[string]fs.FileMode{"a": 0o755, "testdata/b": 0o644, "sub/c": 0o644} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(src, name), []byte("body of "+name), mode); err != nil {
				t.Fatal(err)
			}
		}
		file := filepath.Join(t.TempDir(), "initrd")
		a, err := newInitramfs(file, compress)
		if err != nil {
			t.Fatal(err)
		}
		a.tree("/lab/src/x", src, func(rel string, d fs.DirEntry) bool { return !d.IsDir() || rel == "testdata" })
		a.link("bin/sh", "busybox")
		a.job(wire.Job{Machine: "m"})
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}

		var got []string
		for name, body := range readInitramfs(t, file, compress) {
			got = append(got, name+"="+body)
		}
		slices.Sort(got)
		want := []string{"bin=d755 ", "bin/sh=l777 busybox", "lab=d755 ", "lab/job.json=-644 …", "lab/src=d755 ", "lab/src/x=d755 ",
			"lab/src/x/a=-755 body of a", "lab/src/x/testdata=d755 ", "lab/src/x/testdata/b=-644 body of testdata/b"}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("compress=%v:\n%s\nwant\n%s", compress, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func readInitramfs(t *testing.T, file string, compressed bool) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r io.Reader = bytes.NewReader(b)
	if compressed {
		if r, err = gzip.NewReader(r); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{}
	in := cpio.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		kind := map[cpio.FileMode]string{cpio.TypeDir: "d", cpio.TypeSymlink: "l", cpio.TypeReg: "-"}[h.Mode&^cpio.ModePerm]
		text := cmpOr(h.Linkname, string(body))
		if strings.HasPrefix(text, "{") {
			text = "…"
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is in the archive twice", h.Name)
		}
		files[h.Name] = fmt.Sprintf("%s%o %s", kind, h.Mode&cpio.ModePerm, text)
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func TestInitramfsMissingFile(t *testing.T) {
	a, err := newInitramfs(filepath.Join(t.TempDir(), "initrd"), false)
	if err != nil {
		t.Fatal(err)
	}
	a.copy("x", "/no/such/file")
	a.bytes("y", 0o644, "")
	if err := a.Close(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Close = %v, want the first error", err)
	}
}

// tarOf makes an archive of regular files, with a link that must not be followed.
func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f, Mode: 0o755, Size: int64(len(f))}
		if strings.HasSuffix(f, "@") {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc", 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, rerr := filepath.Rel(dir, p)
			got, err = append(got, rel), rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// The guest and the package are both somebody else's: neither may write outside.
func TestUnpackStaysInside(t *testing.T) {
	b := tarOf(t, "./boot/vmlinuz-1", "../evil", "/abs", "boot/../../evil", "link@", "link@/x", "boot/other")
	outer := t.TempDir()
	dir := filepath.Join(outer, "in")
	sums, err := unpackTar(bytes.NewReader(b), dir, func(name string) bool { return name != "boot/other" })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"in/boot/vmlinuz-1", "in/link@/x"}
	if got := filesBelow(t, outer); !slices.Equal(got, want) || len(sums) != 2 {
		t.Errorf("unpacked %v (%d hashes), want %v", got, len(sums), want)
	}
	if err := verifySums(dir, sums); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot/vmlinuz-1"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := verifySums(dir, sums); err == nil || !strings.Contains(err.Error(), "is corrupt") {
		t.Errorf("a changed file: %v", err)
	}

	disk := filepath.Join(outer, "disk")
	if err := os.WriteFile(disk, append(b, make([]byte, 4096)...), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(outer, "out")
	if n, err := saveFiles(disk, out, diskSize); err != nil || n != 3 {
		t.Errorf("saveFiles = %d, %v, want 3 files", n, err)
	}
	if got, want := filesBelow(t, out), []string{"boot/other", "boot/vmlinuz-1", "link@/x"}; !slices.Equal(got, want) {
		t.Errorf("brought back %v, want %v", got, want)
	}
	if n, err := saveFiles(disk, filepath.Join(outer, "little"), 3); err == nil || !strings.Contains(err.Error(), "larger than the disk") || n != 0 {
		t.Errorf("more than there may be: %d files, %v", n, err)
	}
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := saveFiles(disk, out, diskSize); err != nil || n != 0 {
		t.Errorf("an empty disk: %d files, %v", n, err)
	}
}

func TestWantedFile(t *testing.T) {
	for name, want := range map[string]bool{
		"boot/vmlinuz-6.1.0-56-amd64":                                             true,
		"boot/config-6.1.0-56-amd64":                                              true,
		"boot/System.map-6.1.0-56-amd64":                                          false,
		"lib/modules/6.1.0-56-amd64/kernel/arch/x86/kvm/kvm-amd.ko":               true,
		"lib/modules/6.1.0-56-amd64/kernel/drivers/scsi/sd_mod.ko":                true,
		"lib/modules/6.1.0-56-amd64/kernel/drivers/gpu/drm/i915/i915.ko":          false,
		"lib/modules/6.1.0-56-amd64/kernel/drivers/net/virtio_net.ko":             true,
		"lib/modules/6.1.0-56-amd64/kernel/drivers/net/ethernet/intel/e1000.ko":   false,
		"usr/share/doc/linux-image-6.1.0-56-amd64/kernel/arch/x86/kvm/kvm-amd.ko": false,
	} {
		if got := wantedFile(name); got != want {
			t.Errorf("wantedFile(%s) = %v, want %v", name, got, want)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	good := "CONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_DEVTMPFS=y\nCONFIG_KVM=y\nCONFIG_NO_HZ_FULL=y\nCONFIG_RCU_NOCB_CPU=y\n" +
		"CONFIG_CPUSETS=y\nCONFIG_DEBUG_INFO_BTF=y\nCONFIG_FTRACE=y\n"
	if err := checkConfig(good, SVM); err != nil {
		t.Error(err)
	}
	err := checkConfig(strings.Replace(good, "CONFIG_NO_HZ_FULL=y", "# CONFIG_NO_HZ_FULL is not set", 1), SVM)
	if err == nil || err.Error() != "no CONFIG_NO_HZ_FULL=y (cores without a tick)" {
		t.Errorf("without NO_HZ_FULL: %v", err)
	}
	if err := checkConfig(strings.Replace(good, "DEVTMPFS=y", "DEVTMPFS=m", 1), VMX); err == nil {
		t.Error("a needed option as a module passed")
	}
	for on, says := range map[Backend]string{SVM: "vmx-rt", VMX: ""} {
		if err := checkConfig(good+"CONFIG_PREEMPT_RT=y\n", on); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("PREEMPT_RT on %v: %v", on, err)
		}
	}
}

// fakeModule writes an ELF file with nothing but the .modinfo of a kernel module.
func fakeModule(t *testing.T, file, depends string) {
	t.Helper()
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	data := uint64(binary.Size(elf.Header64{}))
	h := elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: 1, Machine: uint16(elf.EM_X86_64), Version: 1,
		Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2, Shoff: data + uint64(len(info)+len(names))}
	var b bytes.Buffer
	for _, part := range []any{h, []byte(info + names), []elf.Section64{{},
		{Name: 1, Type: 1, Off: data, Size: uint64(len(info)), Addralign: 1},
		{Name: 10, Type: 3, Off: data + uint64(len(info)), Size: uint64(len(names)), Addralign: 1}}} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestModules(t *testing.T) {
	k := &Kernel{Release: "6.1", dir: t.TempDir(), sums: map[string]string{}}
	for name, depends := range map[string]string{
		"kvm-amd": "kvm,ccp", "kvm": "irqbypass", "irqbypass": "", "ccp": "", "loop-a": "loop_b", "loop-b": "loop-a", "lost": "none",
	} {
		f := "lib/modules/6.1/kernel/" + name + ".ko"
		fakeModule(t, filepath.Join(k.dir, f), depends)
		k.sums[f] = ""
	}
	files, err := k.Modules("kvm_amd", "ccp")
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f))
	}
	if got, want := strings.Join(names, " "), "irqbypass.ko kvm.ko ccp.ko kvm-amd.ko"; got != want || err != nil {
		t.Errorf("load order %q, %v; want %q", got, err, want)
	}
	for name, want := range map[string]string{
		"loop_a": "depends on itself", "lost": "has no module none (needed by lost)", "nosuch": "has no module nosuch (needed by the machine)",
	} {
		if _, err := k.Modules(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Modules(%s): %v, want %q", name, err, want)
		}
	}
}

// unpackDeb with a package that dpkg-deb itself has made.
func TestUnpackDeb(t *testing.T) {
	// Busybox has a dpkg-deb too, which cannot build; it has no dpkg-query.
	testenv.Need(t, testenv.Tool("dpkg-deb"), testenv.Tool("dpkg-query"))
	root := t.TempDir()
	for name, body := range map[string]string{
		"DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: x\n",
		"bin/tool":       "tool", "doc": "doc",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(t.TempDir(), "x.deb")
	if out, err := exec.Command("dpkg-deb", "--build", root, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	sums, err := unpackDeb(context.Background(), deb, dir, func(name string) bool { return name == "bin/tool" })
	if err != nil || len(sums) != 1 {
		t.Fatalf("unpackDeb = %v, %v", sums, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "bin/tool")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("unpacked: %v, %v", info, err)
	}
	if err := os.WriteFile(deb, []byte("no package"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := unpackDeb(context.Background(), deb, t.TempDir(), func(string) bool { return true }); err == nil {
		t.Error("unpacked a file that is no package")
	}
}

func TestMergeCover(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "mode: set\nx.go:1.1,2.2 1 1\n", "b": "mode: set\ny.go:1.1,2.2 1 0\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "sub", "cover")
	if err := mergeCover(dir, out); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "mode: set\nx.go:1.1,2.2 1 1\ny.go:1.1,2.2 1 0\n" {
		t.Errorf("merged %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := mergeCover(dir, out); err == nil {
		t.Error("half a profile was merged")
	}
}

func TestMachines(t *testing.T) {
	for _, m := range Machines() {
		got, err := Lookup(m.Name)
		if err != nil || got.Name != m.Name {
			t.Errorf("Lookup(%s) = %+v, %v", m.Name, got, err)
		}
		if m.CPUs < 1 || m.MemMB < 256 || m.Kernel == "" || m.KVM == "" || !strings.Contains(m.cmdline(), "panic=-1") {
			t.Errorf("machine %s is not complete: %+v", m.Name, m)
		}
		if _, known := limits[m.Backend]; !known {
			t.Errorf("back end %s has no limits", m.Backend)
		}
	}
	if _, err := Lookup("nosuch"); err == nil || !strings.Contains(err.Error(), "svm-shadow") {
		t.Errorf("Lookup of nothing: %v", err)
	}
}
