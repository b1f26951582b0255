package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// TestNetnsFastPathStrayPackets sends invalid packets that look like those of a fast path: the
// inbound program passes them, and the engine counts each under its reason.
func TestNetnsFastPathStrayPackets(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3}, clusterNetwork)
	ds := c.upFast()
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	c.sendStrayPackets(ds, c.sendFastJunk)
	// A valid one is carried, which shows that the program has seen the others.
	const packets = `weft_fast_path_packets_total{direction="in"}`
	conn := c.dialFast(c.Nodes[2], ds[0])
	before := ds[0].metrics()[packets]
	for range 1000 {
		payload := ipv4Packet(ds[2].env().Subnet.Addr(), ds[0].env().Subnet.Addr(), 4)
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
	}
	ds[0].awaitMetric(patience, packets, func(v float64) bool { return v >= before+1000 })
	const refused = `weft_fast_path_passed_total{reason="refused"}`
	if n := ds[0].metrics()[refused]; n < 4*20 {
		t.Errorf("the program refused %v packets, want the 20 of each of four kinds", n)
	}
	check(0)
}

// dialFast returns a socket from a node to the daemon's port that sends as a fast path does,
// without a UDP checksum.
func (c *cluster) dialFast(from *lab.Node, to *member) net.Conn {
	c.t.Helper()
	conn, err := from.Dial("udp", netip.AddrPortFrom(to.node.Addr, udpPort))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1))
	})
	if err != nil || optErr != nil {
		c.t.Fatal(err, optErr)
	}
	return conn
}

// sendFastJunk is sendJunk without a UDP checksum.
func (c *cluster) sendFastJunk(to *member, from *lab.Node, payload []byte, reason string) {
	c.t.Helper()
	to.countJunk(c.dialFast(from, to), payload, reason)
}

// TestNetnsFastPathIPv6 sends inner packets of both families: the outer ones are IPv4.
func TestNetnsFastPathIPv6(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		t.Run(string(mode), func(t *testing.T) {
			o := lab.Options{Mode: mode, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}
			c := newCluster(t, o, conntestNetwork("udp"))
			ds := c.upFast()
			a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
			await(t, patience, "an answer by IPv6", func() error {
				return lab.CheckUDP(t.Context(), a.NS, b.NS, b.Addr6, 1)
			})
			before := ds[0].status().Traffic.FastPath
			for _, size := range []int{84, 1428, 1472} {
				r, err := a.Ping(t.Context(), b.Addr6,
					lab.Ping{Count: 50, Interval: time.Millisecond, Size: size})
				if err != nil || r.Received != 50 {
					t.Errorf("pings of %d bytes: %+v, %v", size, r, err)
				}
			}
			now := ds[0].status().Traffic.FastPath
			if now.Out.Packets < before.Out.Packets+150 || now.In.Packets < before.In.Packets+150 {
				t.Errorf("the fast path carried %+v, then %+v: want 150 pings more", before, now)
			}
			for _, bytes := range []int64{50_000, 8 << 20} {
				if err := lab.CheckTCP(t.Context(), a.NS, b.NS, b.Addr6, bytes); err != nil {
					t.Error(err)
				}
			}
			if err := lab.CheckUDP(t.Context(), b.NS, a.NS, a.Addr6, 0, 1, 1400, 1424, 5000, 30_000); err != nil {
				t.Error(err)
			}
			for i, d := range ds {
				if drops := d.drops(); len(drops) > 0 {
					t.Errorf("node %d dropped %v", i, drops)
				}
			}
		})
	}
}

// TestNetnsFastPathKills kills daemons again and again, at any moment of their start, beside bulk
// flows: pings lose nothing.
func TestNetnsFastPathKills(t *testing.T) {
	const kills = 100
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	c.awaitFastFlow(ds, a, b)
	p, err := a.StartPing(t.Context(), b.Addr, lab.Ping{Count: -1, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stop := c.sendBulk(a, b)
	for i := range kills {
		d := ds[i%2]
		if i%4 < 2 {
			d.awaitReady()
		} else {
			time.Sleep(rand.N(400 * time.Millisecond)) // any moment of the start
		}
		d.Kill()
		<-d.Done()
		c.awaitAnswers(patience, p, 20)
		ds[i%2] = c.start(d.node, "--fast-path=auto")
	}
	for _, d := range ds {
		d.awaitReady()
		d.awaitFastPath()
	}
	c.awaitAnswers(patience, p, 300)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if r := p.Stop(); r.Lost() > 0 || r.Duplicates > 0 {
		r.RTT = nil
		t.Errorf("lost %d: %+v", r.Lost(), r)
	}
}

// awaitFastFlow waits until the programs of two nodes carry the pings between their pods. A flow
// that workers have carried, such as before the announcements, returns after a silence.
func (c *cluster) awaitFastFlow(ds []*member, from, to *lab.Pod) {
	c.t.Helper()
	const silence = 200 * time.Millisecond // twice SILENCE of the programs
	await(c.t, patience, "pings of the fast path", func() error {
		before := [2]uint64{}
		for i, d := range ds {
			before[i] = d.status().Traffic.FastPath.Out.Packets
		}
		time.Sleep(silence)
		r, err := from.Ping(c.t.Context(), to.Addr, lab.Ping{})
		if err != nil || r.Received != 1 {
			return fmt.Errorf("%+v, %w", r, err)
		}
		for i, d := range ds {
			if d.status().Traffic.FastPath.Out.Packets == before[i] {
				return fmt.Errorf("%s: none", d.node.Name)
			}
		}
		return nil
	})
}

// sendBulk sends one TCP stream after the other until stop is called, which returns the first
// error.
func (c *cluster) sendBulk(from, to *lab.Pod) (stop func() error) {
	var ended atomic.Bool
	result := make(chan error, 1)
	go func() {
		for !ended.Load() {
			if err := lab.CheckTCP(c.t.Context(), from.NS, to.NS, to.Addr, 4<<20); err != nil {
				result <- err
				return
			}
		}
		result <- nil
	}()
	return func() error { ended.Store(true); return <-result }
}

// TestNetnsFastPathOutageOfWorkers ends a daemon whose workers carry a flow. The programs take it
// over, but packets that wait are lost, and so are trains of datagrams, which the other node's
// workers form on a busy machine and the programs do not take.
func TestNetnsFastPathOutageOfWorkers(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	const most = 450 // far fewer than the start of the next daemon takes
	for name, end := range endings() {
		t.Run(name, func(t *testing.T) {
			p := c.startPings(t, a, b.Addr)
			// On a busy machine the flow may be silent for long enough to return to the programs.
			await(t, patience, "pings of the workers", func() error {
				bulk := lab.Ping{Count: 20, Interval: time.Millisecond, Size: 60_000}
				if r, err := a.Ping(t.Context(), b.Addr, bulk); err != nil || r.Received == 0 {
					return fmt.Errorf("%+v, %w", r, err)
				}
				before := ds[0].status().Traffic.FastPath.Out.Packets
				c.awaitAnswers(patience, p, 100)
				if now := ds[0].status().Traffic.FastPath.Out.Packets; now > before+50 {
					return fmt.Errorf("the programs carried %d of 100 packets", now-before)
				}
				return nil
			})
			lost := p.Result().Lost() // in the bulk
			end(ds[0])
			c.awaitAnswers(patience, p, 300)
			ds[0] = c.start(ds[0].node, "--fast-path=auto")
			ds[0].awaitReady()
			c.awaitAnswers(patience, p, 100)
			r := p.Stop()
			if lost = r.Lost() - lost; lost > most || r.Duplicates > 0 {
				t.Errorf("lost %d and got %d twice, want at most %d lost", lost, r.Duplicates, most)
			}
			t.Logf("lost %d", lost)
		})
	}
}

// TestNetnsFastPathTurnedOff restarts a node without its fast path. Packets that other nodes'
// programs send to it until they hear of that have unfinished checksums.
func TestNetnsFastPathTurnedOff(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0], c.Nodes[1]
	p, err := a.Pods[0].StartPing(t.Context(), b.Pods[0].Addr,
		lab.Ping{Count: -1, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c.awaitAnswers(patience, p, 100)
	ds[1].stop()
	ds[1] = c.start(b, "--fast-path=off")
	ds[1].awaitReady()
	c.awaitAnswers(patience, p, 500)
	const tolerated = 500 // half a second; about 20 on an idle machine
	r := p.Stop()
	r.RTT = nil
	t.Logf("%+v", r)
	if r.Lost() > tolerated || r.Duplicates > 0 {
		t.Errorf("lost %d, want at most %d", r.Lost(), tolerated)
	}
	before := ds[0].status().Traffic.FastPath.Out.Packets
	c.checkTraffic(a.Pods[0], b.Pods[0])
	c.checkTraffic(b.Pods[0], a.Pods[0])
	if now := ds[0].status().Traffic.FastPath.Out.Packets; now != before {
		t.Errorf("the fast path has sent %d packets to a node without one", now-before)
	}
}

// TestNetnsFastPathTCPOverModes keeps a TCP connection busy while a node restarts without its fast
// path and with it again: the connection goes on.
func TestNetnsFastPathTCPOverModes(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	to := c.Nodes[1].Pods[0]
	c.echo(to)
	exchange := c.dialEcho(c.Nodes[0].Pods[0], netip.AddrPortFrom(to.Addr, echoPort))
	exchange(200)
	for i, mode := range []string{"off", "auto", "off", "auto"} {
		n := i / 2 // each node
		ds[n].stop()
		if mode == "off" { // the daemon that stopped had a fast path, which goes on
			exchange(100)
		}
		ds[n] = c.start(c.Nodes[n], "--fast-path="+mode)
		exchange(100)
		ds[n].awaitReady()
		exchange(200)
	}
}

// echoPort is the port on which pods answer a TCP connection with the bytes that they receive.
const echoPort = 7007

// echo lets a pod answer on echoPort until the test ends.
func (c *cluster) echo(at *lab.Pod) {
	c.t.Helper()
	l := c.listen(at, echoPort)
	c.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			go func() {
				_, _ = io.Copy(conn, conn) // the client reports what it misses
				_ = conn.Close()           // the client has ended
			}()
		}
	}()
}

// dialEcho opens a TCP connection to an address where a pod answers by echo, and returns a function
// that sends messages, one when the last has come back, and fails the test if one takes too long.
func (c *cluster) dialEcho(from *lab.Pod, at netip.AddrPort) (exchange func(messages int)) {
	c.t.Helper()
	conn, err := from.Dial("tcp", at)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return func(messages int) {
		c.t.Helper()
		sent, got, slowest := make([]byte, 4000), make([]byte, 4000), time.Duration(0)
		for i := range messages {
			begin := time.Now()
			sent[0] = byte(i)
			err := conn.SetDeadline(begin.Add(patience))
			if err == nil {
				_, err = conn.Write(sent)
			}
			if err == nil {
				_, err = io.ReadFull(conn, got)
			}
			if err != nil || got[0] != sent[0] {
				c.t.Fatalf("message %d: %v", i, err)
			}
			slowest = max(slowest, time.Since(begin))
			time.Sleep(time.Millisecond)
		}
		c.t.Logf("%d messages, the slowest %v", messages, slowest)
	}
}
