package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// plant fills the working directory with the same tree every time.
func (b *box) plant() {
	b.t.Helper()
	old, err := os.ReadDir(b.work)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range old {
		if err := os.RemoveAll(filepath.Join(b.work, e.Name())); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, d := range []string{"tree", "tree/deep", "tree/deep/er", "tree/empty"} {
		if err := os.Mkdir(filepath.Join(b.work, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	var text, numbers strings.Builder
	r := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu")
	for i := range 5000 {
		fmt.Fprintf(&text, "%s %s %d\n", words[r.IntN(len(words))], words[r.IntN(len(words))], r.IntN(1000))
		fmt.Fprintln(&numbers, r.IntN(1_000_000), i)
	}
	raw := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{2}).Read(raw)
	b.file("text", text.String())
	b.file("numbers", numbers.String())
	b.file("other", strings.Replace(text.String(), "gamma", "GAMMA", 40))
	b.file("raw", string(raw))
	b.file("tree/a", "in a\n")
	b.file("tree/deep/b", "in b\n")
	b.file("tree/deep/er/c", string(raw[:5000]))
	// bzip2 of "bunzip2 works\n"
	bz, err := hex.DecodeString(bunzip)
	if err != nil {
		b.t.Fatal(err)
	}
	b.file("small.bz2", string(bz))
	if err := os.Symlink("a", filepath.Join(b.work, "tree/link")); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(b.work, "tree/deep/b"), 0o4751); err != nil {
		b.t.Fatal(err)
	}
	then := []unix.Timespec{{Sec: 1_600_000_000}, {Sec: 1_600_000_000}}
	if err := filepath.WalkDir(b.work, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, then, unix.AT_SYMLINK_NOFOLLOW)
	}); err != nil {
		b.t.Fatal(err)
	}
}

// tree describes all that is below the working directory but for what every run changes (inodes, times).
func (b *box) tree() string {
	b.t.Helper()
	var list []string
	err := filepath.WalkDir(b.work, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(b.work, p)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v uid %d links %d", name, info.Mode(), st.Uid, st.Nlink)
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	sort.Strings(list)
	return strings.Join(list, "\n")
}

// twice runs a process natively and as a guest, each on a fresh tree, and compares what they leave as well.
func (b *box) twice(p process) {
	b.t.Helper()
	guest := p
	guest.argv = b.guest(p.argv...)
	b.plant()
	if p.stdin != nil {
		b.t.Fatal("a stdin cannot be read twice")
	}
	n := b.do(p)
	left := b.tree()
	b.plant()
	g := b.do(guest)
	b.compare(p.argv, n, g)
	if now := b.tree(); now != left {
		b.t.Errorf("%q leaves another tree\n-- natively\n%s\n-- guest\n%s", p.argv, left, now)
	}
}

const bunzip = "425a68393141592653597bed0693000001d9800010400010001029da90200031000008010cca647a0e8384007e2ee48a70a120f7da0d26"

// Debian's busybox-static: output, status and files are what they are natively.
func TestAppletsAsNatively(t *testing.T) {
	b := newBox(t, testenv.Tool("busybox"))
	for _, line := range []string{
		"sha256sum text raw nothere", "sha512sum raw", "md5sum -", "cksum raw", "sort text", "sort -n -r -k1,1 numbers", "sort -u -k2 text -o sorted",
		"uniq -c text", "awk {s[$1]+=$3}END{for(k[n]=k;0;);for(w_in_s=0;0;);print(NR,s[\"alpha\"],s[\"mu\"],sqrt(2),substr(\"hello\",2,3))} text",
		"ls", "ls -R -1 tree", "ls -l tree", "ls -a -F tree", "ls nothere", "od -A x -t x1z raw", "od -c small.bz2", "wc text numbers raw", "wc -l",
		"grep -n -i gamma text other", "grep -c -v -E ^(a|b).*7$ text", "grep -r in tree", "grep zzz text", "sed -e s/alpha/ALPHA/g -e 5,10d text",
		"sed -i s/beta/BETA/ text", "sed -n /mu$/p", "cut -d . -f 1 text", "cut -c 2-5 numbers", "tail -n 7 text", "tail -c 100 raw", "head -n 3 text numbers",
		"head -c 77 raw", "find . -type f -size +1k", "find tree -name [a-c] -perm -4000", "find tree -depth -delete",
		"tar -c -f all.tar tree", "tar -c -v -f - text", "cp -a tree copy", "cp -r tree copy", "cp text tree/empty", "cp text nothere/x",
		"mv text tree/deep", "mv tree moved", "mv nothere x", "rm -r tree", "rm text", "rm tree", "rm -f nothere", "mkdir -p x/y/z", "mkdir tree", "mkdir -m 700 private",
		"rmdir tree/empty", "rmdir tree", "ln -s text soft", "ln text hard", "readlink tree/link", "realpath tree/link", "chmod 640 text", "chmod -R g+w tree",
		"dd if=raw of=part bs=1000 skip=3 count=7", "dd if=text bs=512 count=2", "dd if=/dev/zero of=sparse bs=1 count=1 seek=100000", "truncate -s 12345 raw",
		"stat -c %n-%s-%a-%F-%h-%u-%g-%Y tree text tree/link", "touch -d 2020-01-02T03:04:05 text", "touch new", "diff text other", "diff -r tree tree", "cmp text other",
		"xxd raw", "xxd -r -p numbers", "bunzip2 -k small.bz2", "bzcat small.bz2", "gzip -k text", "gzip -9 -c raw", "date -u -d 2021-02-03T04:05:06 +%s-%A-%j", "date -u -r text",
		"basename /a/b.c .c", "dirname /a/b", "seq 1 3 30", "expr 6 * 7", "printf %05d-%s\\n 42 x", "echo -n hello", "true", "false", "test -d tree", "cal 2 2000",
		"base64 raw", "tac text", "rev text", "nl text", "tr a-z A-Z", "fold -w 20 text", "paste text numbers", "comm text other", "join text other", "split -l 1000 text part.",
		"tee out", "cat text - numbers", "cat", "du -a -k tree/a", "factor 123456789012", "bc", "env", "pwd", "id -u", "uname -s -m", "hexdump -C small.bz2", "strings raw",
		"install -m 600 text installed", "mktemp -u -p tree a.XXXXXX.notunique", "mkfifo fifo", "unlink text", "sum raw", "crc32 raw", "uuencode raw name", "yes-is-no-applet",
		"cpio -o", "ar -t text", "dos2unix text", "expand text", "sleep 0.01", "usleep 10", "nproc --help", "shuf -i 1-1",
	} {
		t.Run(line, func(t *testing.T) {
			b.t = t
			b.twice(process{argv: append([]string{"busybox"}, strings.Fields(line)...)})
		})
	}
	b.t = t
}

// A pipe of 50 MB (with -short, 5) through gzip and back is what went in.
func TestGzip50MB(t *testing.T) {
	b := newBox(t, testenv.Tool("busybox"))
	half := 25_000_000
	if testing.Short() {
		half /= 10
	}
	data := make([]byte, 2*half)
	r := rand.NewChaCha8([32]byte{3})
	r.Read(data[:half])
	for i := half; i < len(data); i++ {
		data[i] = "abcdefgh"[i*i%8]
	}
	big := filepath.Join(b.work, "big")
	if err := os.WriteFile(big, data, 0o644); err != nil {
		t.Fatal(err)
	}
	sums := map[string]hash.Hash{}
	var packed bytes.Buffer
	for name, argv := range map[string][]string{"native": {"busybox", "gzip", "-c", big}, "guest": b.guest("busybox", "gzip", "-c", big)} {
		h := sha256.New()
		sums[name] = h
		p := process{argv: argv, out: h}
		if name == "guest" {
			p.out = &packed
		}
		if r := b.do(p); r.status != 0 || r.err != "" {
			t.Fatalf("%s: status %d, %s", name, r.status, r.err)
		}
	}
	if sum := sha256.Sum256(packed.Bytes()); !bytes.Equal(sum[:], sums["native"].Sum(nil)) || packed.Len() < half/5*4 {
		t.Errorf("gzip gives %d bytes of other content than natively", packed.Len())
	}
	h := sha256.New()
	if r := b.do(process{argv: b.guest("busybox", "gunzip", "-c"), stdin: &packed, out: h}); r.status != 0 {
		t.Fatalf("gunzip: %+v", r)
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("gunzip gives back other content")
	}
	if r := b.do(process{argv: b.guest("busybox", "sha256sum", "big")}); r.out != fmt.Sprintf("%x  big\n", sha256.Sum256(data)) {
		t.Errorf("sha256sum: %+v", r)
	}
}

// bash-static scripts that do not fork.
func TestScriptsAsNatively(t *testing.T) {
	b := newBox(t, testenv.Tool("bash-static"))
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.plant()
			path := b.file("script", script)
			argv := []string{"bash-static", path, "one", "two words", "*"}
			n := b.do(process{argv: argv, stdin: strings.NewReader("line 1\nline  2\\x\nlast")})
			left := b.tree()
			b.plant()
			b.file("script", script)
			g := b.do(process{argv: b.guest(argv...), stdin: strings.NewReader("line 1\nline  2\\x\nlast")})
			b.compare([]string{name}, n, g)
			if now := b.tree(); now != left {
				t.Errorf("leaves another tree\n-- natively\n%s\n-- guest\n%s", left, now)
			}
			if n.out+n.err == "" {
				t.Error("natively it prints nothing")
			}
		})
	}
	b.t = t
}

var scripts = map[string]string{
	"functions": `fact() { local n=$1; if ((n < 2)); then r=1; else fact $((n - 1)); r=$((r * n)); fi; }
fact 20; echo $r; f() { return 42; }; f; echo $?; declare -f fact; g() { echo "$# $1 $2 $*"; }; g "$@"`,
	"arrays": `a=(x y "z w" $((3*3))); a[10]=ten; echo ${#a[@]} "${a[@]}" ${!a[@]} "${a[@]:1:2}"; declare -A m; m[k]=v; m["a b"]=c
echo ${#m[@]} "${m[k]}" "${m[a b]}"; unset 'a[0]'; echo ${a[0]-unset}; b=("${a[@]/#/pre}"); printf '%s\n' "${b[@]}"`,
	"redirections": `exec 3>made; echo to three >&3; exec 3>&-; echo more >>made; exec 4<made; read -u 4 l; echo "got $l"; { echo out; echo err >&2; } 2>errors
echo -n >empty; [[ -s empty ]] || echo empty; exec 1>>log; echo logged; exec 1>&2; echo "at the end"; cd tree && echo $PWD >../where`,
	"here-strings": `read a b <<<"first second third"; echo "$a|$b"; while read -r l; do echo "[$l]"; done <<EOT
one $((1+1))
two\three
EOT
mapfile -t v <<'EOT'
raw $x
second
EOT
echo ${#v[@]} "${v[0]}"`,
	"globbing": `echo tree/* tree/deep/[a-z] *.bz2 nothere*; shopt -s globstar nullglob dotglob extglob; echo **/c nothere* !(text|tree); for f in tree/**; do echo "$f"; done
case hello.txt in *.@(txt|md)) echo text;; esac; [[ abc123 =~ ([a-z]+)([0-9]+) ]] && echo ${BASH_REMATCH[2]}`,
	"read loops": `while IFS= read -r line || [[ -n $line ]]; do printf '%q\n' "$line"; done; read -t 0.1 x; echo "status $?"; n=0; while read -r a b c; do ((n += c)); done <text; echo $n`,
	"arithmetic": `echo $((2**62)) $((-7 / 2)) $((-7 % 3)) $((0xff & 0x0f | 1 << 6)) $((16#abc)) $((1 ? 2 : 3)); ((x = 5, x++, x *= 2)); echo $x; let y=x/5; echo $y; echo $((10 / 0)); echo after`,
	"expansion":  `v=/usr/local/lib.tar.gz; echo ${v##*/} ${v%%.*} ${v%.*} ${v#*/} ${v/local/x} ${v//\//:} ${#v} ${v:4:5} ${v^^} ${u:-default} ${u:=set} $u; printf '%x %o %e %-5s|%5s|%b' 255 8 3.14 ab cd '\t\x41\n'`,
	"traps":      `trap 'echo bye $?' EXIT; trap 'echo error at $LINENO' ERR; false; echo on; exit 9`,
	"status":     `set -u; echo start; echo $undefined; echo never`,
	"errexit":    `set -e; echo start; [[ -e nothere ]]; echo never`,
	"signal":     `echo before; kill -TERM $$; echo after`,
	"syntax":     `echo before; if then; fi`,
	"tests":      `for f in text tree tree/link tree/deep/b nothere; do for o in e f d L r w x s u h; do test -$o $f && echo "$o $f"; done; done; [ text -nt other ]; echo $?; printf '%(%Y-%m-%d)T\n' 0; umask; umask 027; echo >private; ulimit -n >/dev/null && echo limit`,
	"builtins":   `type cd; pushd tree >/dev/null; dirs -l; popd; getopts ab: o -b val; echo $o $OPTARG; hash -r; set -- x y; shift; echo $1; eval 'echo $((1+1))'; printf -v z %03d 7; echo $z; wait; times >/dev/null; exit 300`,
	"loops":      `for ((i = 0; i < 20000; i++)); do s=$((s + i * i)); done; echo $s; until ((i < 10)); do ((i /= 3)); done; echo $i; select x in a; do break; done`,
}
