package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the probes of one node. An answer takes milliseconds.
const (
	probeTries = 3
	probeWait  = 300 * time.Millisecond
	tcpWait    = time.Second
	lossWait   = 100 * time.Millisecond
	storeWait  = 3 * time.Second
	// probePort is a TCP port on which nothing listens as a rule (discard, RFC 863): the refusal
	// is the answer.
	probePort = 9
)

// probe sends packets to the nodes.
func (g gathering) probe(ctx context.Context) {
	if !g.options.Probe {
		g.miss(fromProbes, errNotAsked)
		return
	}
	if err := errors.Join(g.Missing[fromSubnet], g.Missing[fromKernel]); err != nil {
		g.miss(fromProbes, err)
		return
	}
	if len(g.Nodes) == 0 {
		g.miss(fromProbes, errors.New("no other node is known"))
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		g.miss(fromProbes, fmt.Errorf("open a raw socket: %w", err))
		return
	}
	unix.Close(fd)
	before := g.received(g.Daemon)
	var group sync.WaitGroup
	for i := range g.Nodes[:min(len(g.Nodes), maxProbed)] {
		if n := &g.Nodes[i]; !n.Unplanned && g.backend() != "alloc" {
			group.Go(func() { g.probeNode(ctx, n) })
		}
	}
	group.Wait()
	if g.Daemon.Traffic == nil {
		return
	}
	if d, err := g.status(ctx); err == nil {
		after := g.received(d)
		for i := range g.Nodes {
			n := &g.Nodes[i]
			n.Probes.Received = int64(after[n.Name] - before[n.Name])
		}
	}
}

// received returns the packets that arrived from each node.
func (g gathering) received(d Daemon) map[string]uint64 {
	counts := map[string]uint64{}
	if d.Traffic != nil {
		for _, n := range d.Traffic.Nodes {
			counts[n.Node] += n.In.Packets
		}
	}
	return counts
}

// source returns the address from which packets to the nodes' pods come: with host-gw the bridge's,
// since the answers to another one would not be those to pods.
func (g gathering) source() netip.Addr {
	if g.backend() != "host-gw" {
		return netip.Addr{}
	}
	for _, a := range g.Kernel.Addrs {
		if _, isBridge := g.Ports[a.Dev]; isBridge && g.subnet().Masked().Contains(a.Prefix.Addr()) {
			return a.Prefix.Addr()
		}
	}
	return netip.Addr{}
}

func (g gathering) probeNode(ctx context.Context, n *Node) {
	p := &n.Probes
	usual := echoRequest{src: g.source(), dst: n.Target, size: echoSize, tries: probeTries, wait: probeWait}
	small, direct := usual, usual
	small.priority = g.options.Priority
	direct.src, direct.dst = netip.Addr{}, n.Public
	var group sync.WaitGroup
	if n.Public.IsValid() {
		group.Go(func() { p.Direct = echo(ctx, direct) })
	}
	p.Small = echo(ctx, small)
	group.Wait()
	n.Probed = true
	if p.Small.Received == 0 {
		p.Usual = echo(ctx, usual)
		if port := g.tunnelPort(); port != 0 && n.Public.IsValid() {
			p.Port = pokePort(ctx, netip.AddrPortFrom(n.Public, port), []byte{0}, probeWait)
		}
		return
	}
	large := small
	large.size, large.whole = g.fullSize(n), true
	if large.size == 0 { // not known
		large.tries = 0
	}
	group.Go(func() { p.TCP = answersTCP(ctx, small.src, n.Target) })
	group.Go(func() { p.DirectTCP = n.Public.IsValid() && answersTCP(ctx, netip.Addr{}, n.Public) })
	p.Large = echo(ctx, large)
	row := small
	row.tries, row.wait, row.row = lossTries, lossWait, true
	p.Loss = echo(ctx, row)
	group.Wait()
}

// fullSize returns the size of the largest packet of pods to a node, 0 if it is not known. The
// device of a family may take less than pods have as MTU: then this host tells them so.
func (g gathering) fullSize(n *Node) int {
	if l, ok := g.link(n.Route.Dev); ok && l.MTU > 0 && l.MTU < g.Env.MTU {
		return l.MTU
	}
	return g.Env.MTU
}

// answersTCP reports whether a host accepts or refuses a TCP connection.
func answersTCP(ctx context.Context, src, dst netip.Addr) bool {
	d := net.Dialer{Timeout: tcpWait}
	if src.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(dst, probePort).String())
	if err == nil {
		c.Close()
		return true
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// readStore asks each server of the store for its version.
func (g gathering) readStore(ctx context.Context) {
	switch {
	case !g.options.Probe:
		g.miss(fromStore, errNotAsked)
		return
	case g.Missing[fromDaemon] != nil:
		g.miss(fromStore, g.Missing[fromDaemon])
		return
	case len(g.Daemon.Store.Endpoints) == 0:
		g.miss(fromStore, fmt.Errorf("no server is named for the store %q", g.Daemon.Store.Kind))
		return
	}
	g.Store = make([]Endpoint, len(g.Daemon.Store.Endpoints))
	var group sync.WaitGroup
	for i, url := range g.Daemon.Store.Endpoints {
		group.Go(func() { g.Store[i] = askStore(ctx, url, g.Daemon.Store.Kind) })
	}
	group.Wait()
}

// askStore asks a server for its version. Any answer of a store counts, also a refusal.
func askStore(ctx context.Context, url, kind string) Endpoint {
	e := Endpoint{URL: url}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/version", nil)
	if err != nil {
		e.Err = err
		return e
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		// Nothing secret is sent, and nothing that the answer says is trusted.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
	}}
	begin := time.Now()
	answer, err := client.Do(request)
	e.Took = time.Since(begin)
	var alert tls.AlertError
	if errors.As(err, &alert) { // the server wants a certificate
		return e
	}
	if err != nil {
		e.Err = err
		return e
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if date, dateErr := http.ParseTime(answer.Header.Get("Date")); dateErr == nil {
		e.Dated, e.Skew = true, date.Sub(begin.Add(e.Took/2)).Truncate(time.Second)
	}
	refused := answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden
	if kind == "etcd" && err == nil && !refused && !strings.Contains(string(body), "etcdserver") {
		e.Err = proxyError{answer.Status}
	}
	return e
}
