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

func (c *Client) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
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
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case len(b) > maxAnswer:
		return nil, fmt.Errorf("control socket: an answer of more than %d bytes", maxAnswer)
	case r.StatusCode/100 != 2:
		var f failure
		if json.Unmarshal(b, &f) != nil || f.Error == "" {
			f.Error = strings.TrimSpace(string(b))
		}
		return nil, fmt.Errorf("control socket: %s: %s", r.Status, oneLine(f.Error))
	}
	return b, nil
}
