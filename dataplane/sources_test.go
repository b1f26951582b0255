package dataplane

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUnknownSourcesRecorded receives packets from addresses that are not nodes.
func TestUnknownSourcesRecorded(t *testing.T) {
	h := newHarness(t)
	pkt := packetBetween("10.5.2.9", "10.5.1.2")
	h.fromUDP("192.0.2.2", pkt) // a node
	for range 3 {
		h.fromUDP("203.0.113.7", pkt)
	}
	h.clock = h.clock.Add(time.Second)
	h.fromUDP("203.0.113.8", pkt)
	got := h.engine.UnknownSources()
	if len(got) != 2 || got[0].Addr != netip.MustParseAddr("203.0.113.8") || got[0].Packets != 1 ||
		got[1].Addr != netip.MustParseAddr("203.0.113.7") || got[1].Packets != 3 {
		t.Errorf("got %+v", got)
	}
}

func TestUnknownSourcesBounded(t *testing.T) {
	var u unknownSources
	start := time.Now()
	for i := range 1000 {
		u.add(netip.MustParseAddr(fmt.Sprintf("203.0.%d.%d", i/250, i%250)), 1, start.Add(time.Duration(i)))
	}
	all := map[netip.Addr]UnknownSource{}
	u.addTo(all)
	if _, last := all[netip.MustParseAddr("203.0.3.249")]; len(all) != maxUnknownSources || !last {
		t.Errorf("%d addresses, the last among them: %t", len(all), last)
	}
}

// TestUnknownSourcesWhileRead checks that a worker neither waits for a reader nor allocates.
func TestUnknownSourcesWhileRead(t *testing.T) {
	var u unknownSources
	a, now := netip.MustParseAddr("203.0.113.7"), time.Now()
	u.mu.Lock()
	u.add(a, 1, now)
	u.mu.Unlock()
	if u.list[0].Addr.IsValid() {
		t.Error("recorded while read")
	}
	if n := testing.AllocsPerRun(100, func() { u.add(a, 1, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSendErrorRecorded lets the kernel refuse packets to one node, as a packet filter does.
func TestSendErrorRecorded(t *testing.T) {
	h := newHarness(t)
	h.socket.reject = func(datagram []byte) error {
		if datagram[18] == 2 { // of the destination 10.5.2.9
			return unix.EPERM
		}
		return nil
	}
	h.fromTUN(packetBetween("10.5.1.2", "10.5.2.9"))
	h.fromTUN(packetBetween("10.5.1.2", "10.5.3.9"))
	for _, n := range h.engine.Stats().Nodes {
		want := error(nil)
		if n.Name == "two" {
			want = unix.EPERM
		}
		if n.SendError != want || n.SendErrorAt.IsZero() != (want == nil) {
			t.Errorf("%s: %v at %v, want %v", n.Name, n.SendError, n.SendErrorAt, want)
		}
	}
}
