package agent

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
)

// boundedListener keeps at most limit connections open. At the limit, a new connection replaces the
// oldest. If it waited instead, as with netutil.LimitListener, idle or half-open clients would keep
// out the kubelet's probes.
type boundedListener struct {
	net.Listener
	limit int

	mu   sync.Mutex
	open []*boundedConn // the oldest first
}

// Accept returns the next connection.
func (l *boundedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	b := &boundedConn{Conn: c, listener: l}
	if oldest := l.add(b); oldest != nil {
		_ = oldest.Close() // its server has an error to read, too
	}
	return b, nil
}

// add adds a connection and returns the one to close, or nil.
func (l *boundedListener) add(c *boundedConn) (oldest *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= l.limit {
		oldest = l.open[0]
		l.open = slices.Delete(l.open, 0, 1)
	}
	l.open = append(l.open, c)
	return oldest
}

// boundedConn is a connection of a boundedListener.
type boundedConn struct {
	net.Conn
	listener *boundedListener
}

// Close closes the connection and makes room for another one.
func (c *boundedConn) Close() error {
	l := c.listener
	l.mu.Lock()
	if i := slices.Index(l.open, c); i >= 0 {
		l.open = slices.Delete(l.open, i, i+1)
	}
	l.mu.Unlock()
	return c.Conn.Close()
}

// oneByOne serves one request at a time: each one of /metrics or /status may take megabytes. The
// response is buffered, so that a client that does not read it does not keep the others waiting.
type oneByOne struct {
	handler http.Handler
	turn    chan struct{}
}

func newOneByOne(h http.Handler) *oneByOne { return &oneByOne{h, make(chan struct{}, 1)} }

// ServeHTTP waits for the turn of the request, unless its client goes away.
func (o *oneByOne) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case o.turn <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	b := o.buffer(w.Header(), r)
	w.WriteHeader(b.code)
	_, _ = w.Write(b.body.Bytes()) // an error means that the client is gone
}

func (o *oneByOne) buffer(h http.Header, r *http.Request) *bufferedResponse {
	defer func() { <-o.turn }()
	b := &bufferedResponse{header: h, code: http.StatusOK}
	o.handler.ServeHTTP(b, r)
	return b
}

// bufferedResponse is a ResponseWriter that keeps the response.
type bufferedResponse struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (b *bufferedResponse) Header() http.Header         { return b.header }
func (b *bufferedResponse) WriteHeader(code int)        { b.code = code }
func (b *bufferedResponse) Write(p []byte) (int, error) { return b.body.Write(p) }

// localOnly rejects clients on other hosts and in pods.
func localOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r) {
			answer(w, http.StatusForbidden, r.URL.Path+" is for clients on this node\n")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// isLocal reports whether the client runs on this host, outside of pods with a network of their
// own: its address is loopback or the one that it connected to. The kernel drops packets from other
// hosts with such a source.
func isLocal(r *http.Request) bool {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	client := remote.Addr().Unmap()
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return client.IsLoopback() || ok && local.AddrPort().Addr().Unmap() == client
}
