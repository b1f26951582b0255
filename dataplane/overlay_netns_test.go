package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/fib"
	"weft/dataplane/udp"
	"weft/deploy/lab"
	"weft/encap"
	"weft/lease/subnetenv"
)

// overlay is a lab whose nodes each run an engine in this process.
type overlay struct {
	lab     *lab.Lab
	engines []*running
}

// running is an engine on a node.
type running struct {
	*Engine
	node   *lab.Node
	subnet netip.Prefix
	log    *logBuffer
	halt   func() error // ends Run
	stop   func() error // ends Run and closes the engine
}

// logBuffer stores log output.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) count(s string) int { return strings.Count(l.String(), s) }

var overlayNetwork = netip.MustParsePrefix("10.5.0.0/16")

func subnetOf(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i + 1), 0}), 24)
}

func podAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 5, byte(i + 1), 2}) }

// startOverlay builds a lab and starts an engine on each node, the i-th with configs[i] or the last
// one.
func startOverlay(t *testing.T, o lab.Options, configs ...Config) *overlay {
	t.Helper()
	return startPrepared(t, o, func(int, *Engine) {}, configs...)
}

// startPrepared is startOverlay, but calls prepare for the engine of each node before it runs.
func startPrepared(t *testing.T, o lab.Options, prepare func(node int, e *Engine), configs ...Config) *overlay {
	t.Helper()
	lab.SkipWithoutTUN(t)
	l := lab.Start(t, o)
	ov := &overlay{lab: l}
	for i, node := range l.Nodes {
		ov.engines = append(ov.engines, startEngine(t, node, subnetOf(i), configs[min(i, len(configs)-1)],
			func(e *Engine) { prepare(i, e) }))
	}
	ov.connect()
	return ov
}

// connect sets the nodes of every engine.
func (ov *overlay) connect() {
	for _, e := range ov.engines {
		var others []fib.Node
		for _, o := range ov.engines {
			if o != e {
				others = append(others, o.asNode())
			}
		}
		e.SetNodes(e.asNode(), others)
	}
}

func (r *running) asNode() fib.Node {
	return fib.Node{
		Name:     r.node.Name,
		Prefixes: []netip.Prefix{r.subnet},
		Endpoint: netip.AddrPortFrom(r.node.Addr, 8285),
	}
}

func startEngine(t *testing.T, node *lab.Node, subnet netip.Prefix, c Config, prepare func(*Engine)) *running {
	t.Helper()
	r := &running{node: node, subnet: subnet, log: &logBuffer{}}
	c.Device, c.Bind, c.MTU = "flannel%d", netip.AddrPortFrom(node.Addr, 8285), 1500-encap.OverheadUDP4
	if node.Addr.Is6() {
		c.MTU = 1500 - encap.OverheadUDP6
	}
	if c.Workers == 0 {
		c.Workers = 2
	}
	c.Log = slog.New(slog.NewTextHandler(r.log, nil))
	must(t, node.Do(func() (err error) {
		r.Engine, err = Open(c)
		return err
	}))
	prepare(r.Engine)
	r.configureDevice(t)
	if len(node.Pods) > 0 {
		must(t, node.Attach(subnetenv.File{
			Network: overlayNetwork,
			Subnet:  netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits()),
			MTU:     c.MTU,
		}))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		// Run recreates devices and sockets in its own network namespace.
		done <- node.Do(func() error { return r.Run(ctx) })
	}()
	r.halt = sync.OnceValue(func() error { cancel(); return <-done })
	r.stop = func() error { return errors.Join(r.halt(), r.Close()) }
	t.Cleanup(func() { must(t, r.stop()) })
	return r
}

// configureDevice configures the device as ctrl does.
func (r *running) configureDevice(t *testing.T) {
	t.Helper()
	must(t, r.node.AddAddr(r.Device(), netip.PrefixFrom(r.subnet.Addr(), 32)))
	must(t, r.node.SetUp(r.Device(), true))
	must(t, r.node.AddRoute(overlayNetwork, netip.Addr{}, r.Device()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pod returns the first pod of node i.
func (ov *overlay) pod(i int) *lab.Pod { return ov.lab.Nodes[i].Pods[0] }

// expectPing waits until a ping between two pods succeeds, at most as long as a repair may take.
func (ov *overlay) expectPing(t *testing.T, from, to int) {
	t.Helper()
	must(t, lab.Await(t.Context(), 5*time.Second, "a ping between pods", func() error {
		p, err := ov.pod(from).Ping(t.Context(), podAddr(to), lab.Ping{Timeout: 200 * time.Millisecond})
		if err == nil && p.Received == 0 {
			err = errors.New("no reply")
		}
		return err
	}))
}

// modes are the modes that tests of real traffic run with.
var modes = []Mode{ModeOffload, ModePortable}

func TestNetnsPodTraffic(t *testing.T) {
	for _, mode := range modes {
		for _, underlay := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
			t.Run(fmt.Sprint(mode, " ", underlay), func(t *testing.T) {
				ov := startOverlay(t, lab.Options{Nodes: 3, Mode: underlay}, Config{Mode: mode})
				for from := range 3 {
					for to := range 3 {
						if from != to {
							ov.expectPing(t, from, to)
						}
					}
				}
				from, to := ov.pod(0), ov.pod(1)
				must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), 8<<20))
				must(t, lab.CheckUDP(t.Context(), from.NS, to.NS, podAddr(1),
					0, 1, 100, 1444, 1445, 4000, 30_000, 65_000))
			})
		}
	}
}

// TestNetnsMixedModes runs a different mode on each end: the datagrams are the same.
func TestNetnsMixedModes(t *testing.T) {
	ov := startOverlay(t, lab.Options{}, Config{Mode: ModeOffload}, Config{Mode: ModePortable})
	must(t, lab.CheckTCP(t.Context(), ov.pod(0).NS, ov.pod(1).NS, podAddr(1), 4<<20))
	must(t, lab.CheckTCP(t.Context(), ov.pod(1).NS, ov.pod(0).NS, podAddr(0), 4<<20))
}

func TestNetnsUnreachable(t *testing.T) {
	ov := startOverlay(t, lab.Options{}, Config{})
	p, err := ov.pod(0).Ping(t.Context(), netip.MustParseAddr("10.5.200.1"), lab.Ping{Count: 3})
	if err != nil || p.Unreachable != 3 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestNetnsPathMTU(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Mode: mode})
			a, b := ov.engines[0], ov.engines[1]
			under, err := underlayDevice(a.node)
			must(t, err)
			must(t, a.node.SetRouteMTU(netip.PrefixFrom(b.node.Addr, 32), netip.Addr{}, under, 1300))
			p, err := ov.pod(0).Ping(t.Context(), podAddr(1), lab.Ping{Count: 2, Size: 1400, DontFragment: true})
			if err != nil || p.TooBigMTU != 1300-28 || p.TooBigCount != 2 {
				t.Errorf("%+v, %v", p, err)
			}
			// Without DF the packet is fragmented and arrives; with TCP the sender adapts.
			p, err = ov.pod(0).Ping(t.Context(), podAddr(1), lab.Ping{Count: 3, Size: 1272, DontFragment: true})
			if err != nil || p.Received != 3 {
				t.Errorf("packets of the path MTU: %+v, %v", p, err)
			}
			must(t, lab.CheckTCP(t.Context(), ov.pod(0).NS, ov.pod(1).NS, podAddr(1), 2<<20))
			must(t, lab.CheckUDP(t.Context(), ov.pod(0).NS, ov.pod(1).NS, podAddr(1), 1444, 1200, 5000))
		})
	}
}

// TestNetnsPathMTUGrows lowers and restores the underlay's MTU, which the kernel knows at once.
func TestNetnsPathMTUGrows(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Mode: mode})
			ov.expectPing(t, 0, 1)
			long := lab.Ping{Size: 1400, DontFragment: true, Timeout: 200 * time.Millisecond}
			must(t, ov.engines[0].node.SetMTU("eth0", 1300))
			if p, err := ov.pod(0).Ping(t.Context(), podAddr(1), long); err != nil || p.TooBigCount != 1 {
				t.Fatalf("%+v, %v", p, err)
			}
			must(t, ov.engines[0].node.SetMTU("eth0", 1500))
			must(t, lab.Await(t.Context(), 5*time.Second, "a long packet to pass", func() error {
				// The pod's kernel caches the path MTU, too, and for longer.
				if err := ov.pod(0).Sysctl("ipv4/route/flush", "1"); err != nil {
					return err
				}
				p, err := ov.pod(0).Ping(t.Context(), podAddr(1), long)
				if err == nil && p.Received == 0 {
					err = fmt.Errorf("%+v", p)
				}
				return err
			}))
		})
	}
}

// TestNetnsRunReturns takes the best of some attempts, since the machine may be busy.
func TestNetnsRunReturns(t *testing.T) {
	best := time.Hour
	for range 5 {
		ov := startOverlay(t, lab.Options{PodsPerNode: -1}, Config{})
		start := time.Now()
		must(t, ov.engines[0].halt())
		best = min(best, time.Since(start))
		for _, e := range ov.engines {
			must(t, e.stop())
		}
		must(t, ov.lab.Close())
	}
	if best > 100*time.Millisecond {
		t.Errorf("Run returned after %v, want at most 100 ms", best)
	}
}

// underlayDevice returns the name of the device with the node's underlay address.
func underlayDevice(n *lab.Node) (string, error) {
	const name = "eth0"
	_, err := n.Link(name)
	return name, err
}

// TestNetnsCongestionMark sends a node a datagram as if a router on the path had marked it.
func TestNetnsCongestionMark(t *testing.T) {
	const ect0, ce = 2, 3 // RFC 3168 section 5
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Mode: mode, ECN: true})
			pod, err := ov.pod(0).ListenUDP(podAddr(0), 5000) // the port that udp4 sends to
			must(t, err)
			defer pod.Close()
			must(t, setIPOption(pod, unix.IP_RECVTOS, 1))
			node, err := ov.lab.Nodes[1].Dial("udp", netip.AddrPortFrom(ov.engines[0].node.Addr, 8285))
			must(t, err)
			defer node.Close()
			must(t, setIPOption(node.(*net.UDPConn), unix.IP_TOS, ce))
			pkt := packetBetween(podAddr(1).String(), podAddr(0).String())
			encap.SetTOS(pkt, ect0)
			_, err = node.Write(pkt)
			must(t, err)
			must(t, pod.SetReadDeadline(time.Now().Add(5*time.Second)))
			control := make([]byte, 64)
			_, n, _, _, err := pod.ReadMsgUDP(make([]byte, 100), control)
			must(t, err)
			messages, err := unix.ParseSocketControlMessage(control[:n])
			if err != nil || len(messages) != 1 || messages[0].Header.Type != unix.IP_TOS || messages[0].Data[0] != ce {
				t.Errorf("received with %+v, %v; drops %v", messages, err, ov.engines[0].Stats().Drops)
			}
		})
	}
}

// setIPOption sets a socket option of level IPPROTO_IP.
func setIPOption(c *net.UDPConn, option, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, option, value) })
	return errors.Join(err, ctlErr)
}

func TestNetnsPortInUse(t *testing.T) {
	ov := startOverlay(t, lab.Options{PodsPerNode: -1}, Config{})
	for _, mode := range modes {
		err := ov.lab.Nodes[0].Do(func() error {
			bind := netip.AddrPortFrom(ov.lab.Nodes[0].Addr, 8285)
			e, err := Open(Config{Device: "second%d", Bind: bind, MTU: 1472, Mode: mode})
			if err == nil {
				err = e.Close()
			}
			return err
		})
		if !errors.Is(err, udp.ErrInUse) || !strings.Contains(err.Error(), "8285") {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

func TestNetnsOverflows(t *testing.T) {
	ov := startOverlay(t, lab.Options{}, Config{Workers: 1})
	e := ov.engines[0]
	must(t, e.stop())
	// This node's engine no longer reads, but that of the other node does.
	r := startEngineIdle(t, e.node)
	const packets = 3000
	conn, err := ov.pod(0).Dial("udp", netip.AddrPortFrom(podAddr(1), 9))
	must(t, err)
	defer conn.Close()
	for range packets {
		if _, err := conn.Write(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	s := r.statsIn(t)
	if s.TUNOverflows == 0 || s.TUNOverflows >= packets {
		t.Errorf("the TUN dropped %d of %d packets", s.TUNOverflows, packets)
	}
	outer, err := ov.lab.Nodes[1].Dial("udp", netip.AddrPortFrom(e.node.Addr, 8285))
	must(t, err)
	defer outer.Close()
	for range packets {
		if _, err := outer.Write(make([]byte, 1400)); err != nil {
			t.Fatal(err)
		}
	}
	must(t, lab.Await(t.Context(), 2*time.Second, "an overflow", func() error {
		if r.statsIn(t).SocketOverflows == 0 {
			return errors.New("none counted")
		}
		return nil
	}))
}

// startEngineIdle opens an engine without running it.
func startEngineIdle(t *testing.T, node *lab.Node) *running {
	t.Helper()
	r := &running{node: node, subnet: subnetOf(0)}
	must(t, node.Do(func() (err error) {
		bind := netip.AddrPortFrom(node.Addr, 8285)
		r.Engine, err = Open(Config{Device: "flannel%d", Bind: bind, MTU: 1472, Workers: 1, Buffer: 10_000})
		return err
	}))
	t.Cleanup(func() { must(t, r.Close()) })
	r.configureDevice(t)
	return r
}

// statsIn reads the statistics in the engine's own network namespace, where the device is.
func (r *running) statsIn(t *testing.T) (s Stats) {
	t.Helper()
	must(t, r.node.Do(func() error { s = r.Stats(); return nil }))
	return s
}
