package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Package Package
	Release string // uname -r
	dir     string
	sums    map[string]string // path in dir → sha256
}

// moduleTrees are the parts of a kernel's modules that the lab could ever load: a
// whole Debian kernel has 400 MB of them.
var moduleTrees = []string{
	"arch/", "virt/", "block/", "crypto/", "lib/", "net/9p/", "net/core/", "net/vmw_vsock/", "fs/9p/", "fs/netfs/", "fs/fscache/", "fs/overlayfs/",
	"drivers/ata/", "drivers/block/", "drivers/cdrom/", "drivers/char/", "drivers/cpuidle/", "drivers/crypto/ccp/", "drivers/scsi/s", "drivers/virtio/", "drivers/vhost/",
	"drivers/net/virtio_net.ko", "drivers/net/net_failover.ko", "drivers/net/tun.ko", "drivers/net/tap.ko",
}

// wantedFile says whether the lab keeps a file of a kernel package.
func wantedFile(name string) bool {
	if strings.HasPrefix(name, "boot/vmlinuz-") || strings.HasPrefix(name, "boot/config-") {
		return true
	}
	rest, ok := strings.CutPrefix(name, "lib/modules/")
	if !ok || !strings.HasSuffix(name, ".ko") {
		return false
	}
	_, tree, _ := strings.Cut(rest, "/kernel/")
	return slices.ContainsFunc(moduleTrees, func(t string) bool { return strings.HasPrefix(tree, t) })
}

// Kernel fetches and unpacks a kernel package.
func (c *Cache) Kernel(ctx context.Context, name string) (*Kernel, error) {
	p, err := c.Fetch(ctx, name)
	if err != nil {
		return nil, err
	}
	// What is kept is part of the name, so that a newer lab does not take an older
	// one's selection for whole.
	kind := crc32.ChecksumIEEE([]byte(strings.Join(moduleTrees, " ")))
	dir, sums, err := c.unpack(ctx, p, fmt.Sprintf("%08x", kind), wantedFile)
	if err != nil {
		return nil, err
	}
	release, ok := strings.CutPrefix(p.Name, "linux-image-")
	release = strings.TrimSuffix(release, "-unsigned")
	if !ok || sums["boot/vmlinuz-"+release] == "" {
		return nil, fmt.Errorf("package %s has no boot/vmlinuz-%s: name a kernel's, such as %s", p.File, release, anyKernel)
	}
	return &Kernel{p, release, dir, sums}, nil
}

const sumsName = "sums.json"

// unpack puts the wanted files of a package under unpacked/, with a list of their
// hashes, unless a whole copy is there already. Different selections of one package
// differ in kind.
func (c *Cache) unpack(ctx context.Context, p Package, kind string, want func(string) bool) (dir string, sums map[string]string, err error) {
	dir = filepath.Join(c.dir, "unpacked", p.SHA256+"-"+kind)
	whole := func() bool {
		if sums, err = readSums(dir); err != nil || len(sums) == 0 {
			return false
		}
		bad := verifySums(dir, sums)
		if bad != nil {
			c.note("%v; unpacking again", bad)
		}
		return bad == nil
	}
	if whole() {
		return dir, sums, nil
	}
	err = c.locked(ctx, func(tmp string) error {
		if whole() { // another lab has done it meanwhile, and may use it already
			return nil
		}
		// Unpacked, the kept part is smaller than the package.
		if err := needSpace(tmp, 2*p.Size); err != nil {
			return err
		}
		c.note("unpacking %s", p.File)
		out := filepath.Join(tmp, "out")
		if err := os.Mkdir(out, 0o755); err != nil { // nothing may be wanted of it
			return err
		}
		if sums, err = unpackDeb(ctx, c.Path(p), out, want); err != nil {
			return err
		}
		b, err := json.Marshal(sums)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, sumsName), b, 0o644); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return os.Rename(out, dir)
	})
	return dir, sums, err
}

func readSums(dir string) (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		return nil, err
	}
	var sums map[string]string
	return sums, json.Unmarshal(b, &sums)
}

func verifySums(dir string, sums map[string]string) error {
	for name, sum := range sums {
		if err := verifyFile(filepath.Join(dir, name), sum); err != nil {
			return err
		}
	}
	return nil
}

// unpackDeb writes the wanted regular files of a package to dir. dpkg-deb knows
// the container and its compressions; the tar stream is read here, so that
// only what is wanted touches the disk.
func unpackDeb(ctx context.Context, deb, dir string, want func(string) bool) (sums map[string]string, err error) {
	cmd := command(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", deb, err)
	}
	sums, err = unpackTar(pipe, dir, want)
	if err == nil {
		_, err = io.Copy(io.Discard, pipe)
	} else if kerr := cmd.Process.Kill(); kerr != nil && !errors.Is(kerr, os.ErrProcessDone) {
		err = errors.Join(err, kerr)
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("%w: %s", werr, strings.TrimSpace(complaint.String()))
	}
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", deb, err)
	}
	return sums, nil
}

func unpackTar(r io.Reader, dir string, want func(string) bool) (map[string]string, error) {
	sums := map[string]string{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return sums, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) || !want(name) {
			continue
		}
		f := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			return nil, err
		}
		out, err := os.OpenFile(f, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode().Perm()|0o600)
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		_, err = io.Copy(io.MultiWriter(out, sum), in)
		if err := errors.Join(err, out.Close()); err != nil {
			return nil, err
		}
		sums[name] = hex.EncodeToString(sum.Sum(nil))
	}
}

// Image returns the path of the bzImage.
func (k *Kernel) Image() string { return filepath.Join(k.dir, "boot", "vmlinuz-"+k.Release) }

// needed are the options without which the lab proves nothing. A value "m" is
// also met by "y"; an option set to a module must be in the machine's module list.
var needed = []struct{ option, value, why string }{
	{"CONFIG_SERIAL_8250_CONSOLE", "y", "the console"},
	{"CONFIG_DEVTMPFS", "y", "device nodes"},
	{"CONFIG_KVM", "m", "KVM"},
	{"CONFIG_NO_HZ_FULL", "y", "cores without a tick"},
	{"CONFIG_RCU_NOCB_CPU", "y", "cores without RCU callbacks"},
	{"CONFIG_CPUSETS", "y", "cpuset partitions"},
	{"CONFIG_DEBUG_INFO_BTF", "y", "eBPF"},
	{"CONFIG_FTRACE", "y", "tracepoints"},
}

// CheckConfig fails if the kernel cannot be the host of that machine, naming all that it lacks.
func (k *Kernel) CheckConfig(on Backend) error {
	b, err := os.ReadFile(filepath.Join(k.dir, "boot", "config-"+k.Release))
	if err != nil {
		return err
	}
	if err := checkConfig(string(b), on); err != nil {
		return fmt.Errorf("kernel %s cannot be a lab host: %w; choose another with -kernel", k.Release, err)
	}
	return nil
}

func checkConfig(config string, on Backend) error {
	have := map[string]string{}
	for line := range strings.Lines(config) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			have[name] = value
		}
	}
	var lacks []string
	for _, n := range needed {
		if v := have[n.option]; v != n.value && (n.value != "m" || v != "y") {
			lacks = append(lacks, fmt.Sprintf("no %s=%s (%s)", n.option, n.value, n.why))
		}
	}
	if on == SVM && have["CONFIG_PREEMPT_RT"] == "y" {
		lacks = append(lacks, "CONFIG_PREEMPT_RT=y (KVM does not load there without a constant TSC, which this emulator does not have: use -machine vmx-rt)")
	}
	if len(lacks) > 0 {
		return errors.New(strings.Join(lacks, ", "))
	}
	return nil
}

// Modules returns the paths, on this machine, of the named modules and of all they
// depend on, in load order. A name that the kernel does not have is an error.
//
// Debian ships no modules.dep (depmod runs on installation); the dependencies are
// in each module's .modinfo section.
func (k *Kernel) Modules(names ...string) ([]string, error) {
	byName := map[string]string{}
	for f := range k.sums {
		if strings.HasSuffix(f, ".ko") {
			byName[moduleName(path.Base(f))] = f
		}
	}
	var order []string
	state := map[string]int{} // 1: being resolved, 2: done
	var add func(name, by string) error
	add = func(name, by string) error {
		name = moduleName(name)
		switch state[name] {
		case 1:
			return fmt.Errorf("module %s depends on itself", name)
		case 2:
			return nil
		}
		f, ok := byName[name]
		if !ok {
			return fmt.Errorf("kernel %s has no module %s (needed by %s): choose another with -kernel, as %s", k.Release, name, by, anyKernel)
		}
		state[name] = 1
		file := filepath.Join(k.dir, f)
		deps, err := moduleDepends(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, d := range deps {
			if err := add(d, name); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, file)
		return nil
	}
	for _, n := range names {
		if err := add(n, "the machine"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName turns a file or dependency name into the kernel's spelling: '-' and
// '_' are one to the module loader.
func moduleName(s string) string {
	return strings.ReplaceAll(strings.TrimSuffix(s, ".ko"), "-", "_")
}

// moduleDepends reads "depends=a,b" from the NUL-separated .modinfo section.
func moduleDepends(file string) (deps []string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section: not a kernel module")
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(b), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
