// Web serves HTTP on the loopback interface and is its own client: 200 requests in parallel, kept connections, a body of
// 5 MB each way, deadlines, a redirect, a client that leaves; then a Unix socket and a datagram.
// ORDER(none): its atomics pair with nothing: counters that are read when all have ended, flags that only end a loop.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	return v
}

func main() {
	var served atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		fmt.Fprintf(w, "hello %s", r.URL.Query().Get("name"))
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n := must(io.Copy(h, r.Body))
		fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		w.Write(bytes.Repeat([]byte("0123456789"), 500_000))
	})
	mux.Handle("/moved", http.RedirectHandler("/hello?name=moved", http.StatusFound))
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{Handler: mux}
	done := make(chan error)
	go func() { done <- server.Serve(listener) }()
	base := "http://" + listener.Addr().String()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	get := func(path string) string {
		r := must(client.Get(base + path))
		defer r.Body.Close()
		return fmt.Sprint(r.StatusCode, " ", string(must(io.ReadAll(r.Body))))
	}

	var wg sync.WaitGroup
	replies := make([]string, 200)
	for i := range replies {
		wg.Add(1)
		go func() {
			defer wg.Done()
			replies[i] = get(fmt.Sprint("/hello?name=", i))
		}()
	}
	wg.Wait()
	fmt.Println(served.Load(), replies[0], replies[199])
	fmt.Println(len(get("/big")), get("/moved"), get("/nothere"))
	r := must(client.Post(base+"/sum", "application/octet-stream", bytes.NewReader(bytes.Repeat([]byte("abcdefg"), 700_000))))
	fmt.Println(string(must(io.ReadAll(r.Body))))
	r.Body.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := client.Do(must(http.NewRequestWithContext(ctx, "GET", base+"/slow", nil)))
	fmt.Println("slow", errors.Is(err, context.DeadlineExceeded))
	client.CloseIdleConnections()
	fmt.Println(server.Shutdown(context.Background()), <-done)
	_, err = net.Dial("tcp", listener.Addr().String())
	fmt.Println("refused", err != nil)

	path := filepath.Join(os.Args[1], "socket")
	unix := must(net.Listen("unix", path))
	go func() {
		c := must(unix.Accept())
		io.Copy(c, c)
		c.Close()
	}()
	c := must(net.Dial("unix", path))
	fmt.Fprint(c, "there and back")
	must(0, c.(*net.UnixConn).CloseWrite())
	fmt.Println(string(must(io.ReadAll(c))), c.Close(), unix.Close())
	one, two := must(net.ListenPacket("udp", "127.0.0.1:0")), must(net.ListenPacket("udp", "127.0.0.1:0"))
	must(one.WriteTo([]byte("datagram"), two.LocalAddr()))
	buffer := make([]byte, 100)
	n, from, err := two.ReadFrom(buffer)
	fmt.Println(string(buffer[:n]), from.String() == one.LocalAddr().String(), err)
	must(0, two.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, _, err = two.ReadFrom(buffer)
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded), one.Close(), two.Close())
}
