package etcd

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/lease"
	"weft/lease/etcd/testetcd"
)

// proxy is a TCP proxy to a server that can silently drop all data, like a failed firewall.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	dead     bool
	conns    []net.Conn
}

func newProxy(t *testing.T, server *testetcd.Server) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(server.Endpoint(), "http://"))
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			all.Go(func() { p.copy(in, out) })
			all.Go(func() { p.copy(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		all.Wait()
	})
	return p
}

func (p *proxy) copy(to io.Writer, from io.Reader) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		dead := p.dead
		p.mu.Unlock()
		if dead {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) blackhole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

func TestWatchSilentServer(t *testing.T) {
	server := serve(t)
	p := newProxy(t, server)
	config := testConfig(server, "/net", 0)
	config.Endpoints = []string{"http://" + p.listener.Addr().String()}
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	mustClaim(t, s, request(parseNetwork(t, onlyV4), 0))
	s.callTimeout = 200 * time.Millisecond
	w := startWatch(t, s)
	w.next(t)
	newOperator(t, server, "/net").put(t, "/subnets/10.5.200.0-24", `{}`)
	w.next(t) // the stream is open
	p.blackhole()
	t.Logf("cut: %v", w.end(t))
	if err := s.Watch(t.Context(), func(lease.Snapshot) {}); err == nil {
		t.Error("watch through a dead connection returned nil")
	}
	start := time.Now()
	if err := s.Close(); err != nil || time.Since(start) > 1500*time.Millisecond {
		t.Errorf("Close took %s, %v", time.Since(start), err)
	}
}
