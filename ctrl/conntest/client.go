package conntest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Namespace is a network namespace from which a test sends. [Pod] is one.
type Namespace interface {
	// Do runs f in the namespace.
	Do(f func() error) error
}

// Here is the network namespace of the process.
type Here struct{}

// Do runs f.
func (Here) Do(f func() error) error { return f() }

const (
	// connectTimeout covers two retransmissions of a SYN, after 1 and 3 seconds (RFC 6298).
	connectTimeout = 4 * time.Second
	// exchangeTimeout bounds an exchange after the connection is established. The data takes
	// milliseconds.
	exchangeTimeout = 5 * time.Second
	// runTimeout bounds a run on another node: the failures of 100 nodes take two minutes.
	runTimeout = 5 * time.Minute
	// tcpSize is the size of the data of the TCP check in bytes.
	tcpSize = 1 << 20
	// datagramSize is the payload of the datagram that is fragmented: more than two fragments at
	// an MTU of 1500, one at 9000.
	datagramSize = 20_000
	// datagramTries is the number of datagrams. Where the path is narrower than the pod's device,
	// as that of IPv6 by design, one is lost on the way there and one on the way back until both
	// ends know the path MTU.
	datagramTries = 6
	datagramWait  = time.Second
)

// Errors of the TCP check, besides those of connecting.
var (
	errStalled = errors.New("the connection was established, but the data stalled")
	errDiffers = errors.New("the data arrived changed")
)

// caller connects to servers.
type caller struct {
	Namespace     // to connect from
	tos       int // of the packets in both directions, 0: that of other packets
}

// dial opens a connection. The address is a literal, so the dialer starts no goroutine, which
// would run in another namespace.
func (c caller) dial(ctx context.Context, network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = c.Do(func() (err error) {
		d := net.Dialer{Timeout: connectTimeout, Control: func(_, _ string, s syscall.RawConn) error {
			return setTOS(s, c.tos)
		}}
		conn, err = d.DialContext(ctx, network, to.String())
		return err
	})
	return conn, err
}

// send sends an HTTP request over a connection, which it closes, and returns the answer and its
// body. Without a body it is a GET.
func (c caller) send(
	ctx context.Context, conn net.Conn, path string, body []byte,
) (*http.Response, []byte, error) {
	defer conn.Close()
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	url := "http://" + conn.RemoteAddr().String() + path
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if c.tos != 0 {
		r.Header.Set(tosHeader, strconv.Itoa(c.tos))
	}
	used := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	transport := &http.Transport{DialContext: used, DisableKeepAlives: true}
	response, err := transport.RoundTrip(r)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(text))
	}
	return response, text, err
}

// exchange sends random bytes to a server and compares those that return.
func (c caller) exchange(ctx context.Context, to netip.AddrPort) error {
	sent := make([]byte, tcpSize)
	if _, err := rand.Read(sent); err != nil {
		return err
	}
	conn, err := c.dial(ctx, "tcp", to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, exchangeTimeout, errStalled)
	defer cancel()
	response, received, err := c.send(ctx, conn, echoPath, sent)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	sum := sha256.Sum256(sent)
	if response.Header.Get(sumHeader) != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("%w on the way there", errDiffers)
	}
	if sha256.Sum256(received) != sum {
		return fmt.Errorf("%w on the way back", errDiffers)
	}
	return nil
}

// Discover asks the server at an address to describe itself, from a namespace.
func Discover(ctx context.Context, ns Namespace, at netip.AddrPort) (Info, error) {
	return caller{Namespace: ns}.discover(ctx, at)
}

func (c caller) discover(ctx context.Context, at netip.AddrPort) (Info, error) {
	var info Info
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+exchangeTimeout)
	defer cancel()
	err := c.get(ctx, at, infoPath, &info)
	return info, err
}

// RunAt asks the server at an address to test the connectivity of its node.
func RunAt(ctx context.Context, at netip.AddrPort) ([]Result, error) {
	var results []Result
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	err := caller{Namespace: Here{}}.get(ctx, at, runPath, &results)
	return results, err
}

func (c caller) get(ctx context.Context, at netip.AddrPort, path string, v any) error {
	conn, err := c.dial(ctx, "tcp", at)
	if err != nil {
		return err
	}
	_, text, err := c.send(ctx, conn, path, nil)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	return err
}

// exchangeDatagram sends a datagram that needs fragments and awaits the same bytes.
func (c caller) exchangeDatagram(ctx context.Context, to netip.AddrPort) error {
	conn, err := c.dial(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := allowFragments(conn.(*net.UDPConn), to.Addr()); err != nil {
		return err
	}
	sent := make([]byte, datagramSize)
	if _, err := rand.Read(sent); err != nil {
		return err
	}
	copy(sent, requestHead)
	if c.tos == workerTOS {
		copy(sent, workersHead)
	}
	want := bytes.Clone(sent)
	copy(want, replyHead)
	received := make([]byte, 1<<16)
	for range datagramTries {
		if err = ctx.Err(); err != nil {
			return err
		}
		if err = conn.SetDeadline(time.Now().Add(datagramWait)); err != nil {
			return err
		}
		var n int
		if _, err = conn.Write(sent); err == nil {
			n, err = conn.Read(received)
		}
		if err == nil && !bytes.Equal(received[:n], want) {
			return errDiffers
		}
		if err == nil {
			return nil
		}
	}
	return err
}
