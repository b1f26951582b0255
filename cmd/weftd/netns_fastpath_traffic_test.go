package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// TestNetnsFastPathUnusualPackets sends packets without a UDP checksum whose headers are rare. The
// inbound program takes those that it reads, and passes the others to the host and the engine.
func TestNetnsFastPathUnusualPackets(t *testing.T) {
	o := lab.Options{Nodes: 3, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}
	c := newCluster(t, o, conntestNetwork("udp"))
	ds := c.upFast("--probe-interval=0")
	from, to := ds[2].node.Addr, ds[0].node.Addr
	source, own := ds[2].env(), ds[0].env()
	small := ipv4Packet(source.Subnet.Addr(), own.Subnet.Addr(), 4)
	options := withOption(small)
	long := outerPacket(from, to, ipv4Packet(source.Subnet.Addr(), own.Subnet.Addr(), 1000))
	first, second := fragment(long, 0, 512), fragment(long, 512, len(long)-20)
	extension := extendedPacket(source.Subnet6.Addr(), own.Subnet6.Addr())
	one := func(p []byte) [][]byte { return [][]byte{p} }
	for _, p := range []struct {
		name           string
		packets        [][]byte
		received, fast int // by the node, and by its fast path
	}{
		{"plain", one(outerPacket(from, to, small)), 1, 1},
		{"inner options", one(outerPacket(from, to, options)), 1, 1},
		{"outer options", one(withOption(outerPacket(from, to, small))), 1, 0},
		{"outer fragments", [][]byte{first, second}, 1, 0},
		{"a lone outer fragment", one(second), 0, 0},
		{"IPv6 extension header", one(outerPacket(from, to, extension)), 1, 0},
		{"from the node's own address", one(outerPacket(to, to, small)), 0, 0},
		{"from a loopback address", one(outerPacket(netip.MustParseAddr("127.0.0.1"), to, small)), 0, 0},
	} {
		before := ds[0].metrics()
		const times = 10
		for range times {
			sendRaw(t, c.Nodes[2], to, p.packets...)
		}
		// Then one that is carried, which shows that the program has seen the others.
		sendRaw(t, c.Nodes[2], to, outerPacket(from, to, small))
		want := map[string]float64{
			`weft_packets_total{direction="in"}`:           float64(times*p.received + 1),
			`weft_fast_path_packets_total{direction="in"}`: float64(times*p.fast + 1),
		}
		await(t, patience, p.name, func() error {
			now, got := ds[0].metrics(), map[string]float64{}
			for sample := range want {
				got[sample] = now[sample] - before[sample]
			}
			if !maps.Equal(got, want) {
				return fmt.Errorf("received %v, want %v", got, want)
			}
			return nil
		})
	}
}

// outerPacket returns an IPv4 packet with an inner packet as a fast path sends it, without a UDP
// checksum.
func outerPacket(from, to netip.Addr, inner []byte) []byte {
	b := ipv4Packet(from, to, 8+len(inner))
	b[9] = unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[20:], udpPort)
	binary.BigEndian.PutUint16(b[22:], udpPort)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(inner)))
	copy(b[28:], inner)
	return withChecksum(b)
}

// withOption returns an IPv4 packet with one word of options: "no operation".
func withOption(packet []byte) []byte {
	b := slices.Insert(slices.Clone(packet), 20, 1, 1, 1, 1)
	b[0]++ // the length of the header, in words
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return withChecksum(b)
}

// fragment returns a fragment of an IPv4 packet, with the bytes of its payload from begin to end.
func fragment(packet []byte, begin, end int) []byte {
	b := slices.Concat(packet[:20], packet[20+begin:20+end])
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], 77) // identification
	const more = 0x2000
	offset := uint16(begin / 8)
	if 20+end < len(packet) {
		offset |= more
	}
	binary.BigEndian.PutUint16(b[6:], offset)
	return withChecksum(b)
}

// withChecksum sets the checksum of the header of an IPv4 packet.
func withChecksum(b []byte) []byte {
	b[10], b[11] = 0, 0
	var sum uint32
	for i := 0; i < int(b[0]&0xf)*4; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}

// extendedPacket returns an IPv6 packet that has a header with hop-by-hop options and no payload.
func extendedPacket(from, to netip.Addr) []byte {
	b := make([]byte, 48)
	b[0], b[7] = 0x60, 64
	b[5] = 8 // the length of the options, which follow the header
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	const noNextHeader, padN = 59, 1
	b[40], b[42], b[43] = noNextHeader, padN, 4
	return b
}

// sendRaw sends IPv4 packets from a node as they are.
func sendRaw(t *testing.T, from *lab.Node, to netip.Addr, packets ...[]byte) {
	t.Helper()
	if err := from.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		for _, p := range packets {
			err = errors.Join(err, unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: to.As4()}))
		}
		return errors.Join(err, unix.Close(fd))
	}); err != nil {
		t.Fatal(err)
	}
}

// TestNetnsFastPathServices reaches a pod of another node by the address of a Service, which each
// packet filter translates on the client's node, with and without masquerading.
func TestNetnsFastPathServices(t *testing.T) {
	for _, f := range filters() {
		f.need(t)
	}
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	client, server := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	service := netip.MustParseAddrPort("10.96.0.10:80")
	backend := netip.AddrPortFrom(server.Addr, echoPort)
	c.echo(server)
	for _, filter := range []struct{ name, add, masquerade, remove string }{
		{"iptables",
			fmt.Sprintf("iptables -w -t nat -A PREROUTING -p tcp -d %s --dport %d -j DNAT --to-destination %s",
				service.Addr(), service.Port(), backend),
			"iptables -w -t nat -A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE",
			"iptables -w -t nat -F PREROUTING; iptables -w -t nat -F POSTROUTING"},
		{"nftables",
			fmt.Sprintf("nft 'table ip services { chain pre { type nat hook prerouting priority dstnat; "+
				"ip daddr %s tcp dport %d dnat to %s; }; chain post { type nat hook postrouting priority srcnat; }; }'",
				service.Addr(), service.Port(), backend),
			"nft add rule ip services post ct status dnat masquerade",
			"nft delete table ip services"},
	} {
		inNode(t, c.Nodes[0], "sh", "-ec", filter.add)
		for _, masquerade := range []bool{false, true} {
			if masquerade {
				inNode(t, c.Nodes[0], "sh", "-ec", filter.masquerade)
			}
			c.awaitFastFlow(ds, client, server)
			before := fastPackets(ds)
			c.dialEcho(client, service)(100)
			for i, now := range fastPackets(ds) {
				if now < before[i]+100 {
					t.Errorf("%s, masquerade %t: node %d sent %d packets by the fast path", filter.name,
						masquerade, i, now-before[i])
				}
			}
		}
		inNode(t, c.Nodes[0], "sh", "-ec", filter.remove)
	}
}

// fastPackets returns the number of packets that the fast path of each node has sent.
func fastPackets(ds []*member) (all []uint64) {
	for _, d := range ds {
		all = append(all, d.status().Traffic.FastPath.Out.Packets)
	}
	return all
}

// TestNetnsFastPathForwardDrops drops the packets between two pods in the forward chain of a node,
// which the fast path does not bypass: no packet passes in that direction, not even of a connection
// that exists, until the rule is removed.
func TestNetnsFastPathForwardDrops(t *testing.T) {
	for _, f := range filters() {
		f.need(t)
	}
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	c.echo(b)
	exchange := c.dialEcho(a, netip.AddrPortFrom(b.Addr, echoPort))
	for _, filter := range []struct{ name, add, remove string }{
		{"iptables", "iptables -w -I FORWARD -s %s -d %s -j DROP", "iptables -w -D FORWARD 1"},
		{"nftables", "nft 'table ip drops { chain f { type filter hook forward priority 0; ip saddr %s ip daddr %s drop; }; }'",
			"nft delete table ip drops"},
	} {
		for _, on := range c.Nodes {
			for _, way := range [][2]*lab.Pod{{a, b}, {b, a}} {
				name := fmt.Sprintf("%s on %s, %s to %s", filter.name, on.Name, way[0].Name, way[1].Name)
				c.awaitFastFlow(ds, a, b)
				exchange(20)
				inNode(t, on, "sh", "-ec", fmt.Sprintf(filter.add, way[0].Addr, way[1].Addr))
				p, err := a.Ping(t.Context(), b.Addr,
					lab.Ping{Count: 20, Interval: time.Millisecond, Timeout: 50 * time.Millisecond})
				if err != nil || p.Received > 0 {
					t.Errorf("%s: %+v, %v, want no answer", name, p, err)
				}
				if conn, err := dial(a, b, echoPort); err == nil {
					t.Errorf("%s: a new connection is open", name)
					conn.Close()
				}
				inNode(t, on, "sh", "-ec", filter.remove)
				exchange(20)
			}
		}
	}
}

// TestNetnsFastPathHops follows the way of packets by their TTL: it has the same hops with a fast
// path and without.
func TestNetnsFastPathHops(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	c.awaitFastFlow(ds, a, b)
	want := []netip.Addr{ds[0].env().Subnet.Addr(), ds[1].env().Subnet.Masked().Addr(), b.Addr}
	before := fastPackets(ds)
	if got := hops(t, a, b.Addr); !slices.Equal(got, want) {
		t.Errorf("with a fast path: %v, want %v", got, want)
	}
	for i, now := range fastPackets(ds) {
		if now < before[i]+2 { // two probes, and their ICMP errors
			t.Errorf("node %d has sent %d packets by the fast path", i, now-before[i])
		}
	}
	for i, d := range ds {
		d.stop()
		ds[i] = c.start(d.node, "--fast-path=off")
		ds[i].awaitReady()
	}
	c.awaitMesh()
	if got := hops(t, a, b.Addr); !slices.Equal(got, want) {
		t.Errorf("without a fast path: %v, want %v", got, want)
	}
}

// hops returns the addresses that report a UDP packet to a closed port of dst, for each TTL until
// it arrives.
func hops(t *testing.T, from *lab.Pod, dst netip.Addr) (all []netip.Addr) {
	t.Helper()
	var errs net.PacketConn
	if err := from.Do(func() (err error) {
		errs, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer errs.Close()
	const most = 5
	for ttl := 1; ttl <= most; ttl++ {
		hop, err := probeHop(from, netip.AddrPortFrom(dst, 33434), ttl, errs)
		if err != nil {
			t.Fatalf("TTL %d: %v", ttl, err)
		}
		if all = append(all, hop); hop == dst {
			break
		}
	}
	return all
}

// probeHop sends a UDP packet with a TTL and returns the source of the ICMP error that follows.
func probeHop(from *lab.Pod, to netip.AddrPort, ttl int, errs net.PacketConn) (netip.Addr, error) {
	conn, err := from.Dial("udp", to)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return netip.Addr{}, err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl)
	}); err != nil || optErr != nil {
		return netip.Addr{}, errors.Join(err, optErr)
	}
	if _, err := conn.Write([]byte("probe")); err != nil {
		return netip.Addr{}, err
	}
	if err := errs.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return netip.Addr{}, err
	}
	_, hop, err := errs.ReadFrom(make([]byte, 1500))
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(hop.String())
}

// TestNetnsFastPathPathMTU makes a path smaller while TCP connections are busy on it, in a cluster
// of nodes with and without a fast path, and of flannel if there is one: the connections go on, and
// the fast path carries what fits.
func TestNetnsFastPathPathMTU(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCluster(t, lab.Options{Nodes: 4, Mode: mode, Underlay: conntestTwoSubnets.Underlay},
				clusterNetwork)
			ds := c.upMixed()
			a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
			c.awaitFastFlow(ds[:2], a, b)
			exchanges := map[string]func(int){}
			for _, peer := range c.Nodes {
				to := peer.Pods[0]
				if !to.Addr.IsValid() {
					continue
				}
				c.echo(to)
				for _, n := range c.Nodes {
					from := n.Pods[0]
					if n != peer && from.Addr.IsValid() {
						exchanges[from.Name+" to "+to.Name] = c.dialEcho(from, netip.AddrPortFrom(to.Addr, echoPort))
					}
				}
			}
			for _, exchange := range exchanges {
				exchange(3)
			}
			// The router reports the MTU of the bridge on one side.
			if err := c.Root.SetMTU("under1", 1400); err != nil {
				t.Fatal(err)
			}
			for way, exchange := range exchanges {
				t.Log(way)
				exchange(20)
			}
			c.awaitFastFlow(ds[:2], a, b)
			r, err := a.Ping(t.Context(), b.Addr, lab.Ping{Count: 3, Size: 1400, DontFragment: true})
			if err != nil || r.Received != 0 || r.TooBigMTU != 1372 {
				t.Errorf("pings of 1400 bytes: %+v, %v: want an ICMP error with MTU 1372", r, err)
			}
			before := fastPackets(ds[:2])
			r, err = a.Ping(t.Context(), b.Addr, lab.Ping{Count: 20, Size: 1372, DontFragment: true})
			if err != nil || r.Received != 20 {
				t.Errorf("pings of 1372 bytes: %+v, %v", r, err)
			}
			for i, now := range fastPackets(ds[:2]) {
				if now == before[i] {
					t.Errorf("node %d sent none of them by the fast path", i)
				}
			}
		})
	}
}
