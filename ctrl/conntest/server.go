package conntest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// DefaultPort is the TCP and UDP port of a [Server].
const DefaultPort = 8287

// Info describes a server.
type Info struct {
	Node string       `json:"node"`
	Host []netip.Addr `json:"host"` // addresses of the node, one per family
	Pod  []netip.Addr `json:"pod"`  // addresses of the pod on the node, one per family
}

// The server's paths.
const (
	infoPath = "/v1/info" // GET answers with an Info
	echoPath = "/v1/echo" // POST answers with the body, and its hash in sumHeader
	runPath  = "/v1/run"  // GET answers with the results of a run on the server's node
)

// sumHeader is the header with the SHA-256 of the received body, in hexadecimal.
const sumHeader = "Weft-Sha256"

// tosHeader is the header of a request with the TOS of the packets of the answer, in decimal.
const tosHeader = "Weft-Tos"

// maxBody bounds the body of a request, in bytes; a test sends tcpSize.
const maxBody = 4 << 20

// maxRequests bounds the requests that a server handles at a time, and so its memory.
const maxRequests = 64

// serverTimeout bounds the time of one request, except of a run.
const serverTimeout = 15 * time.Second

// datagram heads. A server answers requests only, so that two servers never answer each other.
const (
	requestHead = "weft test request\n"
	workersHead = "weft test workers\n" // request of an answer with workerTOS
	replyHead   = "weft test reply..\n"
)

// Server answers the checks, over HTTP and with UDP datagrams on the same port.
type Server struct {
	Info Info
	// Run tests the connectivity of this node; nil if the server does not offer it.
	Run func(context.Context) ([]Result, error)

	listener net.Listener
	packets  *net.UDPConn
}

// Listen opens the port on all addresses of the network namespace of the calling thread.
func (s *Server) Listen(port uint16) (err error) {
	address := net.JoinHostPort("", strconv.Itoa(int(port)))
	if s.listener, err = net.Listen("tcp", address); err != nil {
		return err
	}
	if s.packets, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)}); err != nil {
		return errors.Join(err, s.listener.Close())
	}
	return nil
}

// Serve answers until ctx is done. Listen must have succeeded.
func (s *Server) Serve(ctx context.Context) error {
	mux := http.NewServeMux()
	limited := func(h http.HandlerFunc) http.Handler {
		return honourTOS(http.TimeoutHandler(h, serverTimeout, "too slow"))
	}
	mux.Handle("GET "+infoPath, limited(s.serveInfo))
	mux.Handle("POST "+echoPath, limited(serveEcho))
	if s.Run != nil {
		mux.Handle("GET "+runPath, s.serveRun())
	}
	server := &http.Server{Handler: atMost(maxRequests, mux), ReadHeaderTimeout: serverTimeout,
		ReadTimeout: serverTimeout, BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		}}
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(s.listener) }()
	go func() { failed <- serveDatagrams(s.packets) }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	return errors.Join(err, server.Close(), s.packets.Close())
}

// atMost refuses requests while n are being handled.
func atMost(n int, h http.Handler) http.Handler {
	slots := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		default:
			http.Error(w, "too many requests", http.StatusServiceUnavailable)
		}
	})
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// honourTOS gives the rest of a connection the TOS that its request asks for.
func honourTOS(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tos, err := strconv.ParseUint(r.Header.Get(tosHeader), 10, 8)
		conn, ok := r.Context().Value(connKey{}).(syscall.Conn)
		if err == nil && ok {
			if err := setTOSOf(conn, int(tos)); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

func (s *Server) serveInfo(w http.ResponseWriter, _ *http.Request) { answer(w, s.Info) }

// answer writes v as JSON.
func answer(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text) // the client notices that the answer is incomplete
}

func serveEcho(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sum := sha256.Sum256(body)
	w.Header().Set(sumHeader, hex.EncodeToString(sum[:]))
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(body) // the client notices that the answer is incomplete
}

// serveRun returns a handler that tests one at a time.
func (s *Server) serveRun() http.Handler {
	return atMost(1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		results, err := s.Run(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		answer(w, results)
	}))
}

// serveDatagrams answers datagrams until the socket is closed.
func serveDatagrams(c *net.UDPConn) error {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		if reply, tos, ok := replyTo(buffer[:n]); ok {
			_ = setTOSOf(c, tos)                     // else the client takes it for the other way
			_, _ = c.WriteToUDPAddrPort(reply, from) // the client notices a missing answer
		}
	}
}

// replyTo changes a request into its reply with its TOS, in place. ok is false if it is not a
// request.
func replyTo(datagram []byte) (reply []byte, tos int, ok bool) {
	switch {
	case bytes.HasPrefix(datagram, []byte(requestHead)):
	case bytes.HasPrefix(datagram, []byte(workersHead)):
		tos = workerTOS
	default:
		return nil, 0, false
	}
	copy(datagram, replyHead)
	return datagram, tos, true
}
