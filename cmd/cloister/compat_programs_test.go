package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compatFromDebian are programs as Debian ships them.
var compatFromDebian = []compatible{
	{name: "busybox", packages: []string{"busybox-static 1.35.0"}, test: "TestAppletsAsNatively", shows: "some 120 command lines of its applets; gzip of 50 MB"},
	{name: "bash", packages: []string{"bash-static 5.2.15"}, test: "TestScriptsAsNatively", shows: "16 scripts that do not fork"},
	{
		name: "zsh", packages: []string{"zsh-static 5.9"}, shows: "a script of builtins and its modules for files, stat and datetime",
		build: installed("/bin/zsh-static"), files: []string{"script.zsh"}, steps: [][]string{{"-f", "script.zsh"}}, status: 9,
	},
	{
		name: "mksh", packages: []string{"mksh 59c"}, shows: "a script, on a third C library (klibc)",
		build: installed("/bin/mksh-static"), files: []string{"script.mksh"}, steps: [][]string{{"script.mksh"}}, status: 4,
	},
	{
		name: "e2fsck", packages: []string{"e2fsck-static 1.47.0", "e2fsprogs 1.47.0"}, shows: "checks a good file system, reports on a damaged one, repairs it to the same bytes",
		build: installed("/sbin/e2fsck.static"), prepare: damaged, env: []string{"E2FSCK_TIME=1700000000"},
		steps: [][]string{{"-f", "-n", "good"}, {"-f", "-n", "bad"}, {"-f", "-y", "bad"}, {"-f", "-n", "bad"}},
	},
	{
		name: "gpgv", packages: []string{"gpgv-static 2.2.40"}, shows: "a good signature and a bad one",
		build: installed("/usr/bin/gpgv-static"), files: []string{"script.lua", "script.lua.asc", "script.zsh", "signer.gpg"}, status: 1,
		steps: [][]string{{"--keyring", "./signer.gpg", "script.lua.asc", "script.lua"}, {"--keyring", "./signer.gpg", "script.lua.asc", "script.zsh"}},
	},
}

// damaged makes an ext4 file system, once, since its inodes have the time; and a copy with holes in its tables.
func damaged(t *testing.T, dir string) {
	t.Helper()
	image := filepath.Join(shared, "compat-ext4")
	data, err := os.ReadFile(image)
	if errors.Is(err, os.ErrNotExist) {
		if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", "testdata/compat", image, "16M").CombinedOutput(); err != nil {
			t.Fatalf("mke2fs: %v\n%s", err, out)
		}
		data, err = os.ReadFile(image)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"good", "bad"} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		for i := range 2000 {
			data[20*1024+i] = 0x55
			data[60*1024+i] ^= 0xff
		}
		copy(data[1024+12:], "\x01\x02\x03\x04") // the superblock's count of free blocks
	}
}

// compatLibraries are libraries of Debian's -dev packages, linked statically into a small program of testdata/compat.
var compatLibraries = []compatible{
	{
		name: "SQLite", packages: []string{"libsqlite3-dev 3.40.1"},
		shows: "rollback, truncated and write-ahead journals, record locks of two connections, transactions beyond the cache, recovery of a hot journal, VACUUM, integrity check",
		build: compiledWith("gcc", "sqlite.c", "-static", "-O2", "-Wall", "-Werror", "-lsqlite3", "-lm", "-lpthread"),
		steps: [][]string{{"data"}, {"data", "crash"}, {"data", "again"}},
	},
	{
		name: "zlib", packages: []string{"zlib1g-dev 1.2.13"}, shows: "20 MB packed and unpacked at three levels and through a gzip file; damage is found",
		build: compiledWith("gcc", "zlib.c", "-static", "-O2", "-Wall", "-Werror", "-lz"), steps: [][]string{{"packed.gz"}},
	},
	{
		name: "OpenSSL libcrypto", packages: []string{"libssl-dev 3.0"},
		shows: "digests, HMAC, PBKDF2, AES-GCM and other ciphers against published answers; RSA, ECDSA and Ed25519 with fixed keys; a generated RSA key",
		build: compiledWith("gcc", "crypto.c", "-static", "-O2", "-Wall", "-Werror", "-lcrypto", "-lpthread"),
		files: []string{"key-rsa.pem", "key-ec.pem", "key-ed25519.pem"}, steps: [][]string{{"key-rsa.pem", "key-ec.pem", "key-ed25519.pem"}},
	},
	{
		name: "Lua", packages: []string{"liblua5.4-dev 5.4.4"}, shows: "the interpreter: collector, coroutines, patterns, files, errors",
		build: compiledWith("gcc", "lua.c", "-static", "-O2", "-Wall", "-Werror", "-I/usr/include/lua5.4", "-llua5.4", "-lm"),
		files: []string{"script.lua"}, steps: [][]string{{"script.lua", "numbers"}}, status: 1,
	},
	{
		name: "libstdc++", packages: []string{"g++ 12.2"}, shows: "exceptions through frames and threads, iostreams, regex, async, atomics, conditions, shared locks",
		build: compiledWith("g++", "threads.cpp", "-static", "-O1", "-Wall", "-Werror", "-pthread"), steps: [][]string{{"uncaught"}, {"file"}}, status: 7,
	},
	{
		name: "OpenMP (libgomp)", packages: []string{"gcc 12.2"}, shows: "loops, reductions, tasks, locks, ordered and SIMD at 1, 3 and 8 threads",
		build: compiledWith("gcc", "openmp.c", "-static", "-O2", "-Wall", "-Werror", "-fopenmp", "-lm"), steps: [][]string{{"1"}, {"3"}, {"8"}},
	},
	{
		name: "pthreads on glibc", packages: []string{"libc6-dev 2.36"}, shows: "sort, grid with barriers, Mandelbrot and a pool at 1, 4 and 32 threads",
		build: compiledWith("gcc", "numbers.c", "-static", "-O2", "-Wall", "-Werror", "-pthread", "-lm"), steps: [][]string{{"1"}, {"4"}, {"32"}},
	},
	{
		name: "pthreads on musl", packages: []string{"musl-tools 1.2.3"}, shows: "the same on musl",
		build: compiledWith("musl-gcc", "numbers.c", "-static", "-O2", "-Wall", "-Werror", "-pthread", "-lm"), steps: [][]string{{"1"}, {"4"}, {"32"}},
	},
}

// compatRuntimes are what the Rust and Go distributions bring: their runtimes, tools and own tests.
var compatRuntimes = []compatible{
	{
		name: "Rust std", from: "the Rust in PATH", shows: "threads, scopes, channels, locks, parking, files, a panic in a thread",
		build: compiledWith("rustc", "threads.rs", "-O", "-C", "target-feature=+crt-static"), steps: [][]string{{"."}}, status: 5,
	},
	{
		name: "Go, collecting", from: "the Go in PATH", shows: "the garbage collector under load at GOMAXPROCS 1 to 8, growing stacks, finalizers",
		build: goBuilt("build", "-buildvcs=false", "./testdata/compat/go/collect"), steps: [][]string{{}},
	},
	{
		name: "Go, goroutines", from: "the Go in PATH", shows: "1000 goroutines: channels, select, locks, timers, tickers, contexts; threads of their own",
		build: goBuilt("build", "-buildvcs=false", "./testdata/compat/go/routines"), steps: [][]string{{}}, status: 3,
	},
	{
		name: "Go, files", from: "the Go in PATH", shows: "os, io/fs, bufio, tar, gzip, json, pipes with deadlines, os.Root",
		build: goBuilt("build", "-buildvcs=false", "./testdata/compat/go/files"), steps: [][]string{{"."}},
	},
	{
		name: "Go, faults and preemption", from: "the Go in PATH", shows: "loops without calls give way at GOMAXPROCS 1 to 8; faults become panics; os/signal",
		build: goBuilt("build", "-buildvcs=false", "./testdata/compat/go/faults"), steps: [][]string{{}}, status: 6,
	},
	{
		name: "Go, web", from: "the Go in PATH", shows: "HTTP on the loopback interface: 200 requests at once, large bodies, deadlines; Unix and datagram sockets",
		build: goBuilt("build", "-buildvcs=false", "./testdata/compat/go/web"), steps: [][]string{{"."}}, flags: []string{"--net", "host"},
	},
	{
		name: "gofmt", from: "the Go in PATH", shows: "formats and rewrites package os",
		build: goTool("bin/gofmt"), prepare: goFiles("os"), steps: [][]string{{"-s", "-r", "a[b:len(a)] -> a[b:]", "."}},
	},
	{
		name: "the Go compiler", from: "the Go in PATH", shows: "compiles package unicode by four workers to the same object",
		build: goTool("pkg/tool/linux_amd64/compile"), prepare: goFiles("unicode"),
		steps: [][]string{{"-p", "unicode", "-std", "-complete", "-c=4", "-o", "unicode.a", "casetables.go", "digit.go", "graphic.go", "letter.go", "tables.go"}},
	},
	ownTests("sync", "", "MutexMisuse|Issue76126"),
	ownTests("time", "Sleep|Tick|Timer|After|Reset|Stop|Monotonic|Now|Local", "LongAdjust"),
	ownTests("os", "Consistent|Pollable|NonBlocking|FIFO|DirFS|Getwd|Stat|Readdir|Link|link|Rename|Chtimes|Chmod|Truncate|Seek|ReadAt|WriteAt|Append|Permissions|"+
		"OpenFile|FileRDWR|SameFile|LargeWrite|RemoveAll|PipeThreads|CopyFS|RemoveReadOnly|ReadFile|Mkdir|EPIPE|ClosedPipe|FdRace|CopyFile|Temp|Create|Deadline|Timeout|RootO|RootRem|RootS",
		"FileNonBlocking|ChdirAndGetwd|CopyFileToFile|StatStdin|OneAtATime|RootConsistency|RootMulti|Executable|Network|RemoveAllLarge|StdPipe|Socket|ReadFileProc"),
	ownTests("golang.org/x/sys/unix", "", "SCM|Ethtool|IoctlGetInt|IoctlRetInt|Ifreq|Pidfd|RlimitAs|Openat2|PassFD|TestSend|SendmsgBuffers|RecvmsgControl|PktInfo|"+
		"Xattr|OpenByHandleAt|ParseOrigDstAddr|Sysv"),
}

// ownTests runs a Go package's own tests but for some: patterns as of go test.
func ownTests(pkg, run, skip string) compatible {
	what, from := "each test's verdict", "the Go in PATH"
	if strings.Contains(pkg, ".") {
		from = "go.mod"
	}
	if run != "" {
		what = "the verdicts of those of its tests that ask something of the system"
	}
	return compatible{
		name: "tests of " + pkg, from: from, shows: what,
		build: goBuilt("test", "-c", pkg), prepare: goFiles(pkg), sum: verdicts,
		steps: [][]string{{"-test.short", "-test.v", "-test.run", run, "-test.skip", skip}},
	}
}

// compatExcluded is what the suite does without, and why. Each is looked at again when its reason goes.
var compatExcluded = []struct{ what, why string }{
	{"stress-ng", "each stressor is a process of its own (fork), and so is the first; Debian's is linked dynamically"},
	{"LTP", "not in Debian 12 (`apt-cache showsrc ltp`: unable to locate package); its cases fork, and their library wants a mounted test device"},
	{"musl's libc-test", "not in Debian 12 (`apt-cache showsrc libc-test`: unable to locate package), nor in the source package of musl 1.2.3, which holds no test; Go's tests of its system call packages stand in its place"},
	{"glibc's tests", "they come with the whole library's build tree, and the driver of each forks"},
	{"sqlite3, lua5.4, openssl, python3, perl as Debian ships them", "linked dynamically; the first three are here through their static libraries"},
	{"busybox's and the shells' ways to start another program", "fork and exec are refused"},
	{"tests of sync: MutexMisuse, Issue76126", "they start themselves again"},
	{"tests of time: LongAdjustTimers", "some seconds of timers; the others show as much"},
	{"tests of os: OpenFileNonBlocking, ChdirAndGetwd, ReaddirnamesOneAtATime, DirFSReadFileProc", "want files of the host that the run does not share"},
	{"tests of os: StatStdin, FileChdirTestlog, StdPipe, Executable", "they start themselves again"},
	{"tests of os: RootConsistency, RootMulti, CopyFileToFile", "hundreds of cases on Unix sockets, which want `--net host`, or of some seconds each"},
	{"tests of golang.org/x/sys/unix: SCM, Send, Recv, PassFD, PktInfo, ParseOrigDstAddr, Ethtool, Ifreq", "sockets, which want `--net host`; TestSocketsAsNatively has those of ours"},
	{"tests of golang.org/x/sys/unix: Pidfd, IoctlGetInt, IoctlRetInt, Xattr, OpenByHandleAt, Sysv", "other processes, System V IPC, the random device's counters, namespaces, extended attributes, file handles: refused (docs/linux-abi.md)"},
	{"tests of golang.org/x/sys/unix: RlimitAs, Openat2", "RLIMIT_AS is recorded and not enforced; openat2 has neither RESOLVE_NO_XDEV nor RESOLVE_CACHED (docs/linux-abi.md)"},
}
