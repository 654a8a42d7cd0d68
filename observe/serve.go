package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// Bounds of both servers: whoever may connect may be slow, greedy or mistaken.
const (
	maxBody     = 64 << 10
	maxHeader   = 16 << 10
	maxAtOnce   = 8 // requests; more get 503
	headerTime  = 5 * time.Second
	requestTime = 15 * time.Second
	idleTime    = time.Minute
)

// Socket is the name of the control socket within the directory of a VM.
const Socket = "control.sock"

// ListenControl makes the control socket in the directory of a VM, readable and writable by its owner
// only. The path may be longer than the 107 bytes of an address (unix(7)): the directory is named through
// its descriptor.
func ListenControl(dir string) (net.Listener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	// bind() makes the node with the socket's own mode less the umask (unix(7)), so it is never open to others.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := private.Listen(context.Background(), "unix", through(d))
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", filepath.Join(dir, Socket), inner(err))
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // its path ends with d; the VM's directory is removed as a whole
	}
	return l, nil
}

func through(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), Socket) }

// inner is the reason without the address, which the caller knows better.
func inner(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	var sys *os.SyscallError
	if errors.As(op.Err, &sys) {
		return sys.Err
	}
	return op.Err
}

// Serve answers requests at l until l is closed, within the bounds above but that of the body, which is the handler's: see LimitBody.
func Serve(l net.Listener, h http.Handler) error {
	s := &http.Server{
		ConnContext: withPeer,
		Handler:     bounded(h), ReadHeaderTimeout: headerTime, ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader,
		// What a client did wrong it is told itself; the terminal belongs to the guest.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return s.Serve(l)
}

func bounded(h http.Handler) http.Handler {
	slots := make(chan struct{}, maxAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		}
	})
}

// LimitBody lets h read at most n bytes of a request's body.
func LimitBody(n int64, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, n)
		h.ServeHTTP(w, r)
	})
}

type peerKey struct{}

// withPeer notes who connected to a Unix socket, as the kernel has it (unix(7), SO_PEERCRED): what a client says of itself is
// worth nothing.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx // it is closed
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// Peer tells which user and process sent a request to a server of Serve, as the kernel saw them connect. pid is 0 for a process of
// another PID namespace. nil: not known, for it came by no Unix socket.
func Peer(r *http.Request) *unix.Ucred {
	cred, ok := r.Context().Value(peerKey{}).(*unix.Ucred)
	if !ok {
		return nil
	}
	return cred
}

// MetricsHandler serves the metrics of a VM at /metrics, and nothing else.
func MetricsHandler(vm VM, source Source) http.Handler {
	r := prometheus.NewPedanticRegistry()
	// It cannot fail: the names are this package's, and the golden test registers them.
	r.MustRegister(NewCollector(vm, source))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxAtOnce}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		reply(w, []byte("cloister: the metrics are at /metrics\n"))
	})
	return LimitBody(maxBody, mux)
}

// StopRequest is the body of `POST /v1/stop`; all of it may be left out.
type StopRequest struct {
	// Reason stands in the report, at most 200 characters in one line.
	Reason string `json:"reason"`
}

// ControlHandler serves the control API of a VM (docs/metrics.md, "The control socket"). stop asks the
// engine to end the run and returns when it was asked.
func ControlHandler(vm VM, source Source, stop func(reason string) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/vm", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), snapshotTime)
		defer cancel()
		s, err := source(ctx)
		if err != nil {
			Fail(w, http.StatusServiceUnavailable, fmt.Sprintf("no snapshot: %v: try again", err))
			return
		}
		Answer(w, http.StatusOK, NewStatus(vm, s))
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		var q StopRequest
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		var tooLarge *http.MaxBytesError
		switch err := d.Decode(&q); {
		case errors.As(err, &tooLarge):
			Fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("a body has at most %d bytes", maxBody))
			return
		case err != nil && !errors.Is(err, io.EOF):
			Fail(w, http.StatusBadRequest, fmt.Sprintf("the body: %v: want {\"reason\": \"…\"} or nothing", err))
			return
		}
		if err := stop(oneLine(q.Reason)); err != nil {
			Fail(w, http.StatusServiceUnavailable, fmt.Sprintf("the engine was not reached: %v", err))
			return
		}
		Answer(w, http.StatusAccepted, struct {
			Stopping bool `json:"stopping"`
		}{true})
	})
	return LimitBody(maxBody, mux)
}

const maxReason = 200

// oneLine makes a client's words fit for a report and a terminal.
func oneLine(s string) string { return shortLine(s, maxReason) }

func shortLine(s string, most int) string {
	r := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
	return strings.TrimSpace(string(r[:min(len(r), most)]))
}

// failure is the body of every answer that is not 2xx from the control API's own handlers.
type failure struct {
	Error string `json:"error"`
}

// Fail answers with {"error": why}, as every answer of the control API that is not 2xx has it.
func Fail(w http.ResponseWriter, status int, why string) { Answer(w, status, failure{why}) }

// Answer answers with v as JSON.
func Answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	reply(w, append(b, '\n'))
}

func reply(w io.Writer, b []byte) {
	_, _ = w.Write(b) // the client is gone: there is nobody left to tell
}
