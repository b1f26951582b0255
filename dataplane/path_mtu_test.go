package dataplane

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/tun"
	"weft/encap"
)

// limitPathMTU limits the path to every node to mtu bytes, including outer headers. It returns the
// number of probes.
func (h *harness) limitPathMTU(mtu int) *int {
	probes := new(int)
	h.socket.reject = func(d []byte) error {
		if len(d)+28 > mtu {
			return unix.EMSGSIZE
		}
		return nil
	}
	h.probePathMTU = func(*peer) (int, error) { *probes++; return mtu, nil }
	return probes
}

func TestPathMTUExceeded(t *testing.T) {
	h := newHarness(t)
	probes := h.limitPathMTU(1000)
	long := udp4("10.5.1.2", "10.5.2.2", dontFragment, 1000, 0)
	fits := udp4("10.5.1.2", "10.5.2.2", dontFragment, 972-28, 0)
	h.fromTUN(long, long) // rejected in one flush
	h.fromTUN(long)
	h.fromTUN(fits)
	if len(h.socket.sent) != 1 || h.drops()[DropPacketTooBig] != 3 || *probes != 1 {
		t.Fatalf("sent %d, drops %v, probes %d", len(h.socket.sent), h.drops(), *probes)
	}
	icmp := h.queue.packets(t)
	if len(icmp) != 3 {
		t.Errorf("%d ICMP errors for 3 packets", len(icmp))
	}
	for _, msg := range icmp {
		if msg[20] != 3 || msg[21] != 4 || binary.BigEndian.Uint16(msg[26:]) != 972 {
			t.Errorf("ICMP error %x", msg[20:28])
		}
	}
	h.socket.reject = nil // the path MTU grows
	h.clock = h.clock.Add(pathMTULifetime + time.Second)
	h.fromTUN(long)
	if len(h.socket.sent) != 2 {
		t.Errorf("the cached path MTU did not expire: drops %v", h.drops())
	}
}

// TestPathMTUExpiryMonotonic sets the wall clock back, which must not delay the expiry.
func TestPathMTUExpiryMonotonic(t *testing.T) {
	h := newHarness(t)
	h.clock = time.Now()
	h.limitPathMTU(1000)
	long := udp4("10.5.1.2", "10.5.2.2", dontFragment, 1000, 0)
	h.fromTUN(long)
	h.socket.reject = nil
	h.clock = setBack(t, h.clock.Add(2*pathMTULifetime), 24*time.Hour)
	h.fromTUN(long)
	if len(h.socket.sent) != 1 {
		t.Errorf("the cached path MTU did not expire: drops %v", h.drops())
	}
}

// setBack returns the time that time.Now would return at now, had the wall clock been set back: the
// monotonic clock goes on. The standard library cannot construct such a time. The seconds of the
// wall clock are above 30 bits of nanoseconds (time.Time).
func setBack(t *testing.T, now time.Time, by time.Duration) time.Time {
	t.Helper()
	then := now
	*(*uint64)(unsafe.Pointer(&then)) -= uint64(by/time.Second) << 30
	if then.Sub(now) != 0 || now.Round(0).Sub(then.Round(0)) != by {
		t.Fatalf("%v set back by %v: got %v", now, by, then)
	}
	return then
}

func TestPathMTUPerNode(t *testing.T) {
	h := newHarness(t)
	h.limitPathMTU(1000)
	h.fromTUN(udp4("10.5.1.2", "10.5.2.2", dontFragment, 1000, 0))
	h.socket.reject = nil
	h.fromTUN(udp4("10.5.1.2", "10.5.3.2", dontFragment, 1000, 0))
	if len(h.socket.sent) != 1 || h.socket.sent[0].key.To.Addr != node3.Endpoint {
		t.Errorf("sent %d, drops %v", len(h.socket.sent), h.drops())
	}
}

func TestPathMTUIPv6(t *testing.T) {
	h := newHarness(t)
	h.limitPathMTU(1400)
	h.fromTUN(ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, 1400)))
	msgs := h.queue.packets(t)
	if len(msgs) != 1 || msgs[0][40] != 2 || binary.BigEndian.Uint32(msgs[0][44:]) != 1372 {
		t.Errorf("ICMP errors %x", msgs)
	}
}

func TestFragmentationWithoutDF(t *testing.T) {
	h := newHarness(t)
	h.limitPathMTU(1000)
	pkt := udp4("10.5.1.2", "10.5.2.2", 0, 2500, 9)
	h.fromTUN(slices.Clone(pkt)) // rejected by the kernel, then fragmented
	h.fromTUN(slices.Clone(pkt)) // fragmented at once
	if len(h.socket.sent) != 6 || len(h.queue.out) != 0 {
		t.Fatalf("%d datagrams, %d ICMP errors, drops %v", len(h.socket.sent), len(h.queue.out), h.drops())
	}
	for i := range 2 {
		var payload []byte
		for _, d := range h.socket.sent[3*i:][:3] {
			if len(d.data) > 972 {
				t.Errorf("fragment of %d bytes", len(d.data))
			}
			payload = append(payload, d.data[20:]...)
		}
		if !bytes.Equal(payload, pkt[20:]) {
			t.Error("wrong payload in the fragments")
		}
	}
	if s := h.engine.Stats(); s.Sent.Packets != 6 {
		t.Errorf("sent %+v", s.Sent)
	}
}

// TestPathMTUBelowIPv6Minimum limits the path to less than 1280 bytes plus outer headers. Every
// link must carry 1280 bytes of IPv6, and a sender that gets an ICMP error for less does not send
// shorter packets.
func TestPathMTUBelowIPv6Minimum(t *testing.T) {
	h := newHarness(t)
	h.limitPathMTU(1280)
	h.fromTUN(ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, encap.MinMTU6+1-40)))
	icmp := h.queue.packets(t)
	if len(icmp) != 1 || binary.BigEndian.Uint32(icmp[0][44:]) != encap.MinMTU6 || len(h.socket.sent) != 0 {
		t.Errorf("ICMP errors %x, sent %d", icmp, len(h.socket.sent))
	}
	for range 2 { // with and without a cached path MTU
		h.fromTUN(ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, encap.MinMTU6-40)))
		h.clock = h.clock.Add(pathMTULifetime + time.Second)
	}
	if len(h.socket.sent) != 2 || h.drops()[DropPacketTooBig] != 1 || len(h.queue.packets(t)) != 1 {
		t.Errorf("1280 bytes: sent %d, drops %v", len(h.socket.sent), h.drops())
	}
}

// TestPathMTUGSOFrame sends a flow that does not know of the narrow path yet. Each segment that is
// too long gets an ICMP error, up to the rate limit, and is not sent.
func TestPathMTUGSOFrame(t *testing.T) {
	h := newHarness(t)
	h.limitPathMTU(1000)
	for range 2 {
		h.queue.in = []tun.Frame{gsoTCP("10.5.1.2", "10.5.2.2", 3000, 1348)}
		h.round()
	}
	// The last segment of each is short enough.
	if len(h.socket.sent) != 2 || h.drops()[DropPacketTooBig] != 4 {
		t.Errorf("sent %d, drops %v", len(h.socket.sent), h.drops())
	}
	icmp := h.queue.packets(t)
	if len(icmp) != 4 {
		t.Errorf("%d ICMP errors for 4 segments", len(icmp))
	}
	for _, msg := range icmp {
		if binary.BigEndian.Uint16(msg[26:]) != 972 {
			t.Errorf("ICMP error %x", msg[20:28])
		}
	}
}

func TestPathMTUProbeUseless(t *testing.T) {
	for name, answer := range map[string]func(*peer) (int, error){
		"probe fails":        func(*peer) (int, error) { return 0, unix.ENETUNREACH },
		"packet fits":        func(*peer) (int, error) { return 9000, nil },
		"less than a header": func(*peer) (int, error) { return 20, nil },
	} {
		h := newHarness(t)
		h.limitPathMTU(1000)
		h.probePathMTU = answer
		h.fromTUN(udp4("10.5.1.2", "10.5.2.2", 0, 1000, 0))
		if len(h.socket.sent) != 0 || len(h.drops()) != 1 {
			t.Errorf("%s: sent %d, drops %v", name, len(h.socket.sent), h.drops())
		}
	}
}
