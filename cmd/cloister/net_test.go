package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func netProgram(t *testing.T, tool string) string {
	return compile(t, tool, "net-"+tool, "net.c", "-static", "-O1", "-no-pie")
}

// Sockets of every kind do under --net host what they do natively, and the files beside them are the same.
func TestSocketsAsNatively(t *testing.T) {
	for _, tool := range []string{"gcc", "musl-gcc"} {
		t.Run(tool, func(t *testing.T) {
			b := newBox(t)
			prog := netProgram(t, tool)
			for _, args := range [][]string{{"self"}, {"resolve", "localhost"}, {"resolve", "127.0.0.1"}, {"tcp", "1"}} {
				argv := append([]string{prog}, args...)
				n := b.do(process{argv: argv})
				passed := b.taken("passed")
				g := b.cloister(append([]string{"run", "--quiet", "--net", "host", "--rw", ".", "--ro", "/etc", "--"}, argv...)...)
				b.compare(argv, n, g)
				if again := b.taken("passed"); again != passed || args[0] == "self" && passed == "" {
					t.Errorf("%q: the passed file holds %q, natively %q", argv, again, passed)
				}
			}
		})
	}
}

// taken returns what is in a file of the working directory and removes it.
func (b *box) taken(name string) string {
	path := filepath.Join(b.work, name)
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if err := os.Remove(path); err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// A guest talks to host processes: as a TCP client, and as the server of a Unix socket below --rw.
func TestSocketsWithHost(t *testing.T) {
	b := newBox(t)
	prog := netProgram(t, "gcc")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // the test is over
			}
			text, err := io.ReadAll(c)
			if err == nil {
				_, err = c.Write(bytes.ToUpper(text))
			}
			if err != nil {
				t.Error(err)
			}
			c.Close()
		}
	}()
	text := strings.Repeat("a line for the other side\n", 20_000)
	port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	r := b.do(process{argv: []string{b.bin, "run", "--quiet", "--net", "host", "--", prog, "tcp", port}, stdin: strings.NewReader(text)})
	if r.status != 0 || r.out != strings.ToUpper(text) {
		t.Errorf("tcp client: status %d, %d bytes, %s", r.status, len(r.out), tail(r.err))
	}

	server := b.started("run", "--quiet", "--net", "host", "--rw", ".", "--", prog, "serve", "guest.sock", "2")
	for range 2 {
		var c net.Conn
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if c, err = net.Dial("unix", filepath.Join(b.work, "guest.sock")); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Write([]byte("hello, guest")); err == nil {
			err = c.(*net.UnixConn).CloseWrite()
		}
		answer, e := io.ReadAll(c)
		if err != nil || e != nil || string(answer) != "HELLO, GUEST" {
			t.Errorf("unix server: %q, %v, %v", answer, err, e)
		}
		c.Close()
	}
	if r := server.wait(); r.status != 0 || r.out != "ready\n" {
		t.Errorf("unix server: %+v", r)
	}
}

// Without --net host the one line says what to do; a guest that waits on a socket can be stopped.
func TestSocketsRefusedAndStopped(t *testing.T) {
	b := newBox(t)
	prog := netProgram(t, "gcc")
	r := b.cloister("run", "--", prog, "self")
	if r.status != 1 || strings.Count(r.err, "system call socket (41) refused") != 1 || !strings.Contains(r.err, "--net host") {
		t.Errorf("without a network: status %d\n%s", r.status, tail(r.err))
	}
	start := time.Now()
	if r := b.cloister("run", "--quiet", "--net", "host", "--for", "300ms", "--", prog, "silent"); r.status != 0 || time.Since(start) > 20*time.Second {
		t.Errorf("a waiting guest: status %d after %v\n%s", r.status, time.Since(start), tail(r.err))
	}
}

// What reviews found to differ is answered as natively.
func TestEdgesAsNatively(t *testing.T) {
	b := newBox(t)
	argv := []string{compile(t, "gcc", "edges", "edges.c", "-static", "-O1"), "edges.data"}
	n := b.do(process{argv: argv})
	if lines := strings.Count(n.out, "Interrupted system call"); n.status != 0 || lines != 12 {
		t.Errorf("natively: status %d, %d calls are cut\n%s", n.status, lines, n.out)
	}
	b.compare(argv, n, b.cloister(append([]string{"run", "--quiet", "--net", "host", "--rw", ".", "--"}, argv...)...))
}

// What an instruction touches beyond the end of a mapped file is a SIGBUS that names the byte, whatever the instruction; the VMM, which looks at
// the stack when it keeps a site, does not die of it. System calls answer EFAULT.
func TestLostPages(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "lostpage", "lostpage.c", "-static", "-O1")
	n := b.do(process{argv: []string{prog}})
	if lines := strings.Count(n.out, "signal 7 code 2 at"); n.status != 0 || lines < 24 {
		t.Errorf("natively: status %d, %d signals\n%s", n.status, lines, n.out)
	}
	b.compare([]string{prog}, n, b.cloister("run", "--quiet", "--rw", ".", "--", prog))
	b.same(process{argv: []string{compile(t, "gcc", "shrinking", "shrinking.c", "-static", "-O1", "-pthread")}}, nil)
	calls := []string{compile(t, "gcc", "lostcalls", "lostcalls.c", "-static", "-O1")}
	n = b.do(process{argv: calls})
	if lines := strings.Count(n.out, "errno 14"); n.status != 0 || lines < 35 {
		t.Errorf("natively: status %d, %d calls are EFAULT\n%s", n.status, lines, n.out)
	}
	b.compare(calls, n, b.cloister("run", "--quiet", "--rw", ".", "--", calls[0]))
	r := b.cloister("run", "--report", b.work+"/r", "--rw", ".", "--", prog, "-")
	if rep := b.report(b.work+"/r", r); r.status != 135 || rep.Fault == nil || rep.Fault.Signal != "SIGBUS" || rep.Fault.Address == nil || *rep.Fault.Address&0xfff != 100 ||
		len(rep.Fault.Backtrace) == 0 || rep.Fault.Backtrace[0].Symbol != "main" {
		t.Errorf("without a handler: status %d\n%s", r.status, tail(r.err))
	}
}
