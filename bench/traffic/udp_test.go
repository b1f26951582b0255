package traffic

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestUDPBatchRuns checks the order of flows in a socket's batch.
func TestUDPBatchRuns(t *testing.T) {
	for _, tt := range []struct {
		run, flows int
		turn       []uint32 // that repeats
	}{
		{0, 3, []uint32{10, 11, 12}},
		{1, 3, []uint32{10, 11, 12}},
		{2, 3, []uint32{10, 10, 11, 11, 12, 12}},
		{2, 1, []uint32{10}},
	} {
		s := &udpSender{load: UDPLoad{Size: 64, Run: tt.run}}
		b := s.addBatch(10, tt.flows)
		if len(b.messages) < udpBatch || len(b.messages)%(tt.flows*max(tt.run, 1)) != 0 {
			t.Errorf("%d messages for %d flows in runs of %d", len(b.messages), tt.flows, tt.run)
		}
		for turn := range slices.Chunk(b.payloads, len(tt.turn)) {
			for i, p := range turn {
				if got := binary.BigEndian.Uint32(p[flowOffset:]); got != tt.turn[i] {
					t.Fatalf("%d flows in runs of %d: flow %d, want %d", tt.flows, tt.run, got, tt.turn[i])
				}
			}
		}
	}
}

// TestNetnsUDPSources checks on arrival that each flow has its own source and comes in runs.
func TestNetnsUDPSources(t *testing.T) {
	const flows, run = 2 * sourcesPerSocket, 4
	from, to := LinkedEnds(t)
	conn, err := to.NS.ListenUDP(to.Addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	at := netip.AddrPortFrom(to.Addr, uint16(conn.LocalAddr().(*net.UDPAddr).Port))
	s, err := newUDPSender(from, []netip.AddrPort{at}, UDPLoad{Size: 64, Flows: flows, Run: run})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(s.sockets)
	sources := make(map[uint32]netip.AddrPort)
	payload := make([]byte, 64)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for len(sources) < flows {
		n, err := s.burst(2*run, true)
		if err != nil || n != 2*run {
			t.Fatalf("%d packets sent, %v", n, err)
		}
		for i := range n {
			_, source, err := conn.ReadFromUDPAddrPort(payload)
			if err != nil {
				t.Fatal(err)
			}
			flow := binary.BigEndian.Uint32(payload[flowOffset:])
			if known, ok := sources[flow]; ok && known != source {
				t.Fatalf("flow %d comes from %s and %s", flow, known, source)
			} else if ok != (i%run > 0) {
				t.Fatalf("packet %d of a burst is of flow %d, seen before: %v", i, flow, ok)
			}
			sources[flow] = source
		}
	}
	all := make(map[netip.AddrPort]bool)
	for _, source := range sources {
		all[source] = true
	}
	if len(all) != flows {
		t.Errorf("%d sources for %d flows", len(all), flows)
	}
}

// A receiver that gets no CPU until everything was sent does not report a rate above that of the
// sender.
func TestNetnsUDPLateReceiver(t *testing.T) {
	from, to := LinkedEnds(t)
	sinks := &udpSinks{}
	defer sinks.close()
	if err := sinks.add(to, 1); err != nil {
		t.Fatal(err)
	}
	s, err := newUDPSender(from, sinks.at, UDPLoad{Size: 64, Flows: 1, Rate: 1e3, Duration: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(s.sockets)
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	sinks.start()
	sinks.awaitIdle(s.sent)
	r, err := sinks.stop(s.elapsed)
	if sent := float64(s.sent) / s.elapsed.Seconds(); err != nil || r.Received != s.sent ||
		r.ReceivedRate > 1.001*sent {
		t.Errorf("%+v, %v; sent %d at %.0f a second", r, err, s.sent, sent)
	}
}
