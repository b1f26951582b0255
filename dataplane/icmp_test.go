package dataplane

import (
	"net/netip"
	"testing"
	"time"
)

func TestUnreachableSendsICMP(t *testing.T) {
	h := newHarness(t)
	h.fromTUN(packetBetween("10.5.1.2", "10.5.9.9"))
	got := h.queue.packets(t)
	if len(got) != 1 || got[0][20] != 3 || got[0][21] != 0 ||
		netip.AddrFrom4([4]byte(got[0][16:20])) != netip.MustParseAddr("10.5.1.2") {
		t.Fatalf("written %x", got)
	}
	if s := h.engine.Stats(); s.ICMPSent != 1 {
		t.Errorf("sent %d ICMP errors, want 1", s.ICMPSent)
	}
}

func TestICMPRateLimit(t *testing.T) {
	h := newHarness(t)
	for range 3 * icmpBurst {
		h.fromTUN(packetBetween("10.5.1.2", "10.5.9.9"))
	}
	s := h.engine.Stats()
	if s.ICMPSent != icmpBurst || s.ICMPSuppressed != 2*icmpBurst || len(h.queue.out) != icmpBurst {
		t.Errorf("sent %d, suppressed %d, written %d", s.ICMPSent, s.ICMPSuppressed, len(h.queue.out))
	}
	h.clock = h.clock.Add(10 * time.Second / icmpPerSecond)
	for range 20 {
		h.fromTUN(packetBetween("10.5.1.2", "10.5.9.9"))
	}
	if s := h.engine.Stats(); s.ICMPSent != icmpBurst+10 {
		t.Errorf("sent %d after refilling 10 tokens", s.ICMPSent)
	}
	h.clock = h.clock.Add(time.Hour)
	for range 3 * icmpBurst {
		h.fromTUN(packetBetween("10.5.1.2", "10.5.9.9"))
	}
	if s := h.engine.Stats(); s.ICMPSent != 2*icmpBurst+10 {
		t.Errorf("sent %d after an hour, which refills one burst", s.ICMPSent)
	}
}
