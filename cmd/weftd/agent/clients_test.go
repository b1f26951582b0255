package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/cmd/weftd/config"
)

// startHealth starts a health server on loopback.
func startHealth(t *testing.T, configure ...func(*http.Server)) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := config.Health{IP: "127.0.0.1", Metrics: config.ClientsAll}
	h, err := listenHealth(ctx, c, maxConnections, fixedSource{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range configure {
		f(h.server)
	}
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h.listener.Addr().String()
}

// TestIdleConnectionsBounded opens 5,000 connections, each with half a header. Few may stay open,
// and a probe must get in at once.
func TestIdleConnectionsBounded(t *testing.T) {
	address := startHealth(t)
	before := openDescriptors(t)
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	const total = 5000
	for range total {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\n"); err != nil && !isReset(err) {
			t.Fatal(err)
		}
	}
	probe := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: readHeaderTimeout / 2}
	res, err := probe.Get("http://" + address + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	// This process has both ends of each connection.
	const most = 32
	if n := openDescriptors(t) - before - total; n > most+1 {
		t.Errorf("the server has %d connections open, want at most %d", n, most)
	}
}

func isReset(err error) bool {
	return strings.Contains(err.Error(), "reset") || strings.Contains(err.Error(), "broken pipe")
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestConnectionEndsWithoutRequests(t *testing.T) {
	address := startHealth(t, func(s *http.Server) { s.IdleTimeout = 50 * time.Millisecond })
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(c); err != nil || !bytes.HasSuffix(body, []byte("weftd is running\n")) {
		t.Errorf("%q, %v", body, err)
	}
}

func TestLongHeaderRejected(t *testing.T) {
	address := startHealth(t)
	r, err := http.NewRequest(http.MethodGet, "http://"+address+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Long", strings.Repeat("x", 2*maxHeaderBytes))
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %s", res.Status)
	}
}

// TestOneByOne sends many requests at once. They must be served one by one, and a client that does
// not read its response must not keep the others waiting.
func TestOneByOne(t *testing.T) {
	var current, highest atomic.Int32
	body := bytes.Repeat([]byte("x"), 8<<20) // more than the socket buffers hold
	server := httptest.NewServer(newOneByOne(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := current.Add(1); n > highest.Load() {
			highest.Store(n)
		}
		defer current.Add(-1)
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(body)
	})))
	defer server.Close()
	deaf, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	if _, err := io.WriteString(deaf, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	const clients = 6
	failed := make(chan error, clients)
	client := http.Client{Timeout: patience}
	for range clients {
		go func() {
			res, err := client.Get(server.URL)
			if err == nil {
				defer res.Body.Close()
				if n, copyErr := io.Copy(io.Discard, res.Body); copyErr != nil || n != int64(len(body)) ||
					res.StatusCode != http.StatusTeapot {
					err = fmt.Errorf("%s, %d bytes, %w", res.Status, n, copyErr)
				}
			}
			failed <- err
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if n := highest.Load(); n != 1 {
		t.Errorf("%d requests at once, want 1", n)
	}
}

// TestClientOnOwnAddress checks that a client which connects to an address of its own host other
// than loopback is local.
func TestClientOnOwnAddress(t *testing.T) {
	for client, want := range map[string]bool{"192.0.2.7:4000": true, "192.0.2.8:4000": false, "": false} {
		r := httptest.NewRequest(http.MethodGet, "/status", nil)
		r.RemoteAddr = client
		own := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 8081}
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, own))
		if got := isLocal(r); got != want {
			t.Errorf("client %q: local %t", client, got)
		}
	}
}
