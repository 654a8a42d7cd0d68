package observe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// control serves a fake VM in a directory whose path is longer than a socket's address may be.
func control(t *testing.T, source Source, stop func(string) error) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "vm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := ListenControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	vm, _ := fake(t)
	done := make(chan error, 1)
	go func() { done <- Serve(l, ControlHandler(vm, source, stop)) }()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve ended with %v", err)
		}
	})
	return dir
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestControl(t *testing.T) {
	_, s := fake(t)
	var reasons []string
	dir := control(t, always(s), func(r string) error { reasons = append(reasons, r); return nil })
	st, err := os.Stat(filepath.Join(dir, Socket))
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v; want a socket of mode 0600", st.Mode(), err)
	}
	c := NewClient(dir)
	got, err := c.Status(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	v := got.VCPUs[0]
	if got.Name != "loop" || got.State != Sealed || got.WallNS != 10e9 || *got.Monitor != 101 || len(got.VCPUs) != 2 ||
		*v.CPU != 1 || v.SealedNS != 4e9 || *v.Sealed.ByCause["syscall"].Count != 9 || *v.Sealed.ByCause["syscall"].LostNS != 9*90_000 {
		t.Errorf("%+v", got)
	}
	// 9 calls, 3 kicks, an exception, 30 interrupts, 4 others, 10 transits; 40 calls and transits, 12 of the kernel's.
	if v.Sealed.Total != 57 || v.Open.Total != 92 || v.Open.LostNS != 4e6 || v.Sealed.NotKnown != "" {
		t.Errorf("sealed %d, open %d, lost %d, %q", v.Sealed.Total, v.Open.Total, v.Open.LostNS, v.Sealed.NotKnown)
	}
	if w := got.VCPUs[1]; w.CPU != nil || w.Open.NotKnown == "" || w.Open.ByCause["transit"].Count != nil || *w.Open.ByCause["host-interrupt"].Count != 3 {
		t.Errorf("a book that does not close: %+v", w.Open)
	}
	if len(got.Budget) != 8 || got.Budget[0].Clause != "total<=100" || got.Budget[4].VCPU != 1 {
		t.Errorf("%+v", got.Budget)
	}
	if err := c.Stop(soon(t), "  two\nlines \x1b[2J"); err != nil {
		t.Fatal(err)
	}
	if len(reasons) != 1 || reasons[0] != "two lines  [2J" {
		t.Errorf("%q", reasons)
	}
}

func TestControlSaysWhatIsWrong(t *testing.T) {
	dir := control(t, func(context.Context) (*Snapshot, error) { return nil, errors.New("torn") },
		func(string) error { return errors.New("broken pipe") })
	c := NewClient(dir)
	if _, err := c.Status(soon(t)); err == nil || err.Error() != "control socket: 503 Service Unavailable: no snapshot: torn: try again" {
		t.Error(err)
	}
	if err := c.Stop(soon(t), ""); err == nil || !strings.Contains(err.Error(), "the engine was not reached: broken pipe") {
		t.Error(err)
	}
	for _, x := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/v1/stop", strings.Repeat(" ", maxBody) + "{}", 413, "at most 65536 bytes"},
		{"POST", "/v1/stop", "{", 400, "the body"},
		{"POST", "/v1/stop", `{"reasn": "x"}`, 400, "reasn"},
		{"POST", "/v1/stop", `{"reason": 7}`, 400, "the body"},
		{"GET", "/v1/stop", "", 405, ""},
		{"POST", "/v1/vm", "", 405, ""},
		{"GET", "/", "", 404, ""},
		{"GET", "/metrics", "", 404, ""},
	} {
		q, err := http.NewRequestWithContext(soon(t), x.method, "http://cloister"+x.path, strings.NewReader(x.body))
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.http.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != x.status || !strings.Contains(string(b), x.text) {
			t.Errorf("%s %s %.20q: %d %q %v; want %d with %q", x.method, x.path, x.body, r.StatusCode, b, err, x.status, x.text)
		}
	}
}

// A route of somebody else's has its own bound, and knows who asks.
func TestComposed(t *testing.T) {
	dir := t.TempDir()
	l, err := ListenControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	vm, s := fake(t)
	mux := http.NewServeMux()
	mux.Handle("/", ControlHandler(vm, always(s), func(string) error { return nil }))
	const most = 4 * maxBody
	mux.Handle("POST /v1/large", LimitBody(most, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			Fail(w, http.StatusRequestEntityTooLarge, err.Error()+strings.Repeat("\n", maxFailure))
			return
		}
		p := Peer(r)
		Answer(w, http.StatusConflict, map[string]int{"bytes": len(b), "uid": int(p.Uid), "pid": int(p.Pid)})
	})))
	done := make(chan error, 1)
	go func() { done <- Serve(l, mux) }()
	c := NewClient(dir)
	post := func(path string, n int) (int, string) {
		t.Helper()
		r, err := c.Do(soon(t), "POST", path, bytes.Repeat([]byte(" "), n))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := ReadAnswer(r, maxAnswer)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	if status, b := post("/v1/large", most); status != 409 || b != fmt.Sprintf("{\"bytes\":%d,\"pid\":%d,\"uid\":%d}\n", most, os.Getpid(), os.Getuid()) {
		t.Error(status, b)
	}
	if status, b := post("/v1/large", most+1); status != 413 || Failure([]byte(b)) != "http: request body too large" {
		t.Error(status, b)
	}
	if status, b := post("/v1/stop", maxBody+1); status != 413 {
		t.Error(status, b)
	}
	if _, err := c.Status(soon(t)); err != nil {
		t.Error(err)
	}
	if p := Peer(httptest.NewRequest("GET", "/", nil)); p != nil {
		t.Errorf("a peer without a socket: %+v", p)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	c := NewClient(dir)
	if _, err := c.Status(soon(t)); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("no socket: %v", err)
	}
	l, err := ListenControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenControl(dir); err == nil || strings.Contains(err.Error(), "/proc/self") || !strings.Contains(err.Error(), Socket+": address already in use") {
		t.Errorf("a second socket: %v", err)
	}
	// Takes the number that the directory had while the socket was made, and so the path that it was made by.
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, Socket)); err != nil {
		t.Fatal(err) // as a killed monitor leaves it
	}
	if _, err := c.Status(soon(t)); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("a dead socket: %v", err)
	}
	if _, err := NewClient(filepath.Join(dir, "gone")).Status(soon(t)); !errors.Is(err, ErrNoMonitor) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := ListenControl(filepath.Join(dir, "gone")); err == nil {
		t.Error("listens in a directory that is not there")
	}
}

// A monitor that is stopped, or is no monitor, cannot hold or fool a client.
func TestClientIsBounded(t *testing.T) {
	for _, x := range []struct {
		name string
		talk func(net.Conn)
		want string
	}{
		{"silent", func(c net.Conn) { io.Copy(io.Discard, c) }, "deadline exceeded"},
		{"endless", func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
			for b := make([]byte, 1<<16); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}, "more than 4194304 bytes"},
		{"no JSON", func(c net.Conn) { fmt.Fprint(c, "HTTP/1.0 200 OK\r\n\r\nhello") }, "the answer of the control socket: invalid"},
		{"no HTTP", func(c net.Conn) { fmt.Fprint(c, "hello\r\n\r\n") }, "control socket: "},
		{"another schema", func(c net.Conn) { fmt.Fprint(c, `HTTP/1.0 200 OK`+"\r\n\r\n"+`{"schema":"cloister.vm/v9"}`) }, `speaks "cloister.vm/v9"`},
		{"going", func(net.Conn) {}, ErrNoMonitor.Error()},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := ListenControl(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						for r := bufio.NewReader(c); ; { // the request's head
							if line, err := r.ReadString('\n'); err != nil || line == "\r\n" {
								break
							}
						}
						x.talk(c)
					}()
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			if x.name != "silent" {
				ctx = soon(t)
			}
			defer cancel()
			_, err = NewClient(dir).Status(ctx)
			if err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") || errors.Is(err, ErrNoMonitor) != (x.name == "going") {
				t.Errorf("%v; want %q", err, x.want)
			}
		})
	}
}

// More requests than the server serves at once are turned away, and none of them waits.
func TestAtOnce(t *testing.T) {
	hold := make(chan struct{})
	entered := make(chan struct{}, 100)
	s := httptest.NewServer(bounded(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-hold
	})))
	defer s.Close()
	codes := make(chan int, maxAtOnce)
	get := func() int {
		r, err := http.Get(s.URL)
		if err != nil {
			return 0
		}
		r.Body.Close()
		return r.StatusCode
	}
	for range maxAtOnce {
		go func() { codes <- get() }()
	}
	for range maxAtOnce {
		<-entered
	}
	if c := get(); c != 503 {
		t.Errorf("one too many: %d", c)
	}
	close(hold)
	for range maxAtOnce {
		if c := <-codes; c != 200 {
			t.Errorf("one of those let in: %d", c)
		}
	}
	if c := get(); c != 200 {
		t.Errorf("afterwards: %d", c)
	}
}

func FuzzStatm(f *testing.F) {
	for _, s := range []string{"8710465 1853 1346 646 0 19599 0\n", "1 2 3", "1 2", "", "0 18446744073709551615 1", "a b c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseStatm(s, 4096)
		if (r == nil) != (err != nil) {
			t.Fatalf("%q: %v, %v", s, r, err)
		}
		if r != nil && (r.Private > 1<<60 || r.Shared > 1<<60) {
			t.Fatalf("%q: %+v", s, r)
		}
	})
}

func TestResident(t *testing.T) {
	r, err := parseStatm("8710465 1853 1346 646 0 19599 0\n", 4096)
	if err != nil || *r != (Resident{507 * 4096, 1346 * 4096}) {
		t.Errorf("%+v, %v", r, err)
	}
	own, err := ReadResident("/", os.Getpid())
	if err != nil || own.Private < 256<<10 || own.Shared < 256<<10 {
		t.Errorf("this process: %+v, %v", own, err)
	}
	if _, err := ReadResident(t.TempDir(), 1); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
