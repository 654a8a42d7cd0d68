package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
)

// ErrNoMonitor says that nobody answers at a control socket: the monitor is gone, going, or not there yet.
var ErrNoMonitor = errors.New("no monitor answers")

// maxAnswer bounds what a client reads, bytes; a Status of one vCPU has about 10 KiB.
const maxAnswer = 4 << 20

// maxFailure bounds what a client shows of a failure, characters.
const maxFailure = 1000

// Client talks to the control socket of one VM.
type Client struct{ http http.Client }

// NewClient talks to the VM whose directory is dir. It connects at each request.
func NewClient(dir string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return (&net.Dialer{}).DialContext(ctx, "unix", through(d))
	}
	return &Client{http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader}}}
}

// Status asks how the VM is. The error is ErrNoMonitor when nobody listens.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	b, err := c.ask(ctx, http.MethodGet, "/v1/vm", nil)
	if err != nil {
		return nil, err
	}
	s := &Status{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("the answer of the control socket: %w", err)
	}
	if s.Schema != Schema {
		return nil, fmt.Errorf("the control socket speaks %q, this cloister speaks %s: use the cloister that started the VM", s.Schema, Schema)
	}
	return s, nil
}

// Stop asks to end the run, and returns as soon as the engine was told. The error is ErrNoMonitor when
// nobody listens.
func (c *Client) Stop(ctx context.Context, reason string) error {
	b, err := json.Marshal(StopRequest{reason})
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, http.MethodPost, "/v1/stop", b)
	return err
}

// Do sends a request and gives the answer, whatever its status; its body is the caller's to close. The error is ErrNoMonitor when
// nobody listens.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, method, "http://cloister"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r, err := c.http.Do(q)
	if err != nil {
		var op *net.OpError
		gone := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		if gone || errors.Is(err, os.ErrNotExist) || errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, os.ErrPermission) && ctx.Err() == nil {
			return nil, ErrNoMonitor
		}
		return nil, fmt.Errorf("control socket: %w", inner(err))
	}
	return r, nil
}

func (c *Client) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	r, err := c.Do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := ReadAnswer(r, maxAnswer)
	if err != nil {
		return nil, err
	}
	if r.StatusCode/100 != 2 {
		return nil, fmt.Errorf("control socket: %s: %s", r.Status, Failure(b))
	}
	return b, nil
}

// ReadAnswer reads the body of an answer, at most that many bytes.
func ReadAnswer(r *http.Response, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("control socket: an answer of more than %d bytes", limit)
	}
	return b, nil
}

// Failure is what the body of an answer that is not 2xx says, in one line.
func Failure(b []byte) string {
	var f failure
	if json.Unmarshal(b, &f) != nil || f.Error == "" {
		f.Error = strings.TrimSpace(string(b))
	}
	return shortLine(f.Error, maxFailure)
}
