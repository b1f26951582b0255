package doctor

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// TestSeenStep walks along the way of a packet: at each place, what is said of its end.
func TestSeenStep(t *testing.T) {
	at := func(place string, outbound bool) Seen {
		return Seen{Place: place, Device: place, Outbound: outbound, Packets: 1}
	}
	near := []Seen{at("overlay", true), at("underlay", true)}
	far := []Seen{at("underlay", false), at("overlay", false), at("bridge", true), at("bridge", false),
		at("overlay", true), at("underlay", true)}
	back := []Seen{at("underlay", false), at("overlay", false)}
	dropped := Seen{Place: "engine", Outbound: true, Packets: 2, Drop: "no_node"}
	target := netip.MustParseAddr("10.5.2.0")
	for _, c := range []struct {
		name      string
		near, far Watched
		dst       netip.Addr
		outcome   Outcome
		want      string // in the evidence or the remedy
	}{
		{"nothing", Watched{}, Watched{}, netip.Addr{}, Fails, "do not reach the overlay"},
		{"overlay", Watched{Seen: near[:1]}, Watched{}, netip.Addr{}, Fails, "not sent to the other node"},
		{"encrypted", Watched{Seen: near[:1], Unwatched: []string{"eth0: encrypted"}}, Watched{}, netip.Addr{}, Fails, "lost between"},
		{"underlay", Watched{Seen: near}, Watched{}, netip.Addr{}, Fails, "a firewall or security group"},
		{"fast path", Watched{Seen: near[1:]}, Watched{}, netip.Addr{}, Fails, "a firewall or security group"},
		{"blind node", Watched{Seen: near}, Watched{Error: "it runs flannel"}, netip.Addr{}, Unknown, "it runs flannel"},
		{"arrived", Watched{Seen: near}, Watched{Seen: far[:1]}, netip.Addr{}, Fails, "does not take them"},
		{"decapsulated", Watched{Seen: near}, Watched{Seen: far[:2]}, netip.Addr{}, Fails, "no such pod"},
		{"decapsulated for the node", Watched{Seen: near}, Watched{Seen: far[:2]}, target, Fails, "does not answer"},
		{"delivered", Watched{Seen: near}, Watched{Seen: far[:3]}, netip.Addr{}, Passes, "delivered to the pod"},
		{"answered", Watched{Seen: near}, Watched{Seen: far[:4]}, netip.Addr{}, Fails, "does not leave"},
		{"answered into the overlay", Watched{Seen: near}, Watched{Seen: far[:5]}, netip.Addr{}, Fails, "does not leave"},
		{"answer sent", Watched{Seen: near}, Watched{Seen: far}, netip.Addr{}, Fails, "drops one direction"},
		{"answer back", Watched{Seen: append(near, back...)}, Watched{Seen: far}, netip.Addr{}, Fails, "filter of this host"},
		{"dropped", Watched{Seen: []Seen{dropped}}, Watched{}, netip.Addr{}, Fails, "worker out 2 dropped as no_node"},
		{"no daemon", Watched{Error: "busy"}, Watched{}, netip.Addr{}, Unknown, "busy"},
	} {
		c.near.Node, c.far.Node = "n1", "n2"
		w := &way{Facts: &Facts{}, flow: Flow{Dst: c.dst}, node: &Node{Name: "n2", Target: target},
			sent: &sent{watched: []Watched{c.near, c.far}}}
		s := w.seenStep()
		if s.Outcome != c.outcome || !strings.Contains(s.Evidence+s.Remedy, c.want) {
			t.Errorf("%s: %+v, want %s and %q", c.name, s, c.outcome, c.want)
		}
	}
}

// TestTraceProbeMarks checks that packets of each protocol hold their mark and have a length that
// is looked for.
func TestTraceProbeMarks(t *testing.T) {
	src, dst := netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("10.5.2.3")
	udp := newTraceProbe(Flow{Src: src, Dst: dst, Protocol: protocolUDP}, src)
	if m := udp.marked(nil); !bytes.Contains(udp.payload(), m.Marks[0]) || m.Lengths[0] != header4+8+len(udp.payload()) {
		t.Errorf("UDP: %+v", m)
	}
	icmpProbe := newTraceProbe(Flow{Src: src, Dst: dst}, src)
	echo := echoRequest{dst: dst, size: icmpProbe.size, mark: icmpProbe.mark}.packet(1, 2)
	if m := icmpProbe.marked(nil); !bytes.Contains(echo, m.Marks[0]) || m.Lengths[0] != header4+len(echo) {
		t.Errorf("ICMP: %+v", m)
	}
	tcp := newTraceProbe(Flow{Src: src, Dst: dst, Protocol: protocolTCP, Port: 80}, src).marked(&Node{Name: "n2"})
	if tcp.Node != "n2" || len(tcp.Marks) != 2 || !bytes.HasPrefix(tcp.Marks[0], []byte{10, 5, 1, 0, 10, 5, 2, 3}) ||
		!bytes.HasSuffix(tcp.Marks[0], []byte{0, 80}) || !bytes.HasPrefix(tcp.Marks[1], []byte{10, 5, 2, 3, 10, 5, 1, 0, 0, 80}) {
		t.Errorf("TCP: %+v", tcp)
	}
	if a, b := newTraceProbe(Flow{Dst: dst}, src), newTraceProbe(Flow{Dst: dst}, src); bytes.Equal(a.mark, b.mark) {
		t.Error("two probes have one mark")
	}
}
