package dataplane

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap/offload"
)

// provokeDrop has a function for each drop reason that makes a worker drop one packet.
func provokeDrop() map[Drop]func(*harness) {
	good := udp4("10.5.1.2", "10.5.2.2", 0, 10, 0)
	inbound := udp4("10.5.2.2", "10.5.1.2", 0, 10, 0)
	return map[Drop]func(*harness){
		DropTooShort:           func(h *harness) { h.fromUDP("192.0.2.2", []byte{0x45, 0, 0}) },
		DropBadVersion:         func(h *harness) { h.fromUDP("192.0.2.2", bytes.Repeat([]byte{0x75}, 40)) },
		DropBadLength:          func(h *harness) { h.fromTUN(append(slices.Clone(good), 0)) },
		DropUnknownOuterSource: func(h *harness) { h.fromUDP("192.0.2.99", inbound) },
		DropSpoofedInnerSource: func(h *harness) { h.fromUDP("192.0.2.3", inbound) },
		DropNotForUs:           func(h *harness) { h.fromUDP("192.0.2.2", packetBetween("10.5.2.2", "10.5.3.3")) },
		DropMulticast:          func(h *harness) { h.fromTUN(packetBetween("10.5.1.2", "224.0.0.251")) },
		DropNoNode:             func(h *harness) { h.fromTUN(packetBetween("10.5.1.2", "10.5.9.9")) },
		DropNeighbourMessage: func(h *harness) {
			h.fromTUN(ip6("fe80::1", "ff02::2", 58, []byte{133, 0, 0, 0, 0, 0, 0, 0}))
		},
		DropUnleasedInnerSource: func(h *harness) {
			h.engine.config.SourceCheck = CheckStrict
			h.fromUDP("192.0.2.2", packetBetween("9.9.9.9", "10.5.1.2"))
		},
		DropTruncated: func(h *harness) {
			m := message("192.0.2.2", len(inbound), inbound)
			m.Truncated = true
			h.socket.in = [][]udp.Message{{m}}
			h.round()
		},
		DropCongestion: func(h *harness) {
			m := message("192.0.2.2", len(inbound), inbound)
			m.TOS = 3
			h.socket.in = [][]udp.Message{{m}}
			h.round()
		},
		DropBadFrame: func(h *harness) {
			h.queue.in = []tun.Frame{{Packet: good, Header: offload.Header{GSO: 77}}}
			h.round()
		},
		DropPacketTooBig: func(h *harness) {
			h.socket.reject = func([]byte) error { return unix.EMSGSIZE }
			h.probePathMTU = func(*peer) (int, error) { return 60, nil }
			h.fromTUN(udp4("10.5.1.2", "10.5.2.2", dontFragment, 100, 0))
		},
		DropNoRoom: func(h *harness) {
			h.socket.room, h.socket.full = 1, 1
			h.fromTUN(good, good)
		},
		DropSendError: func(h *harness) {
			h.socket.reject = func([]byte) error { return errRejected }
			h.fromTUN(good)
		},
		DropTUNDown: func(h *harness) {
			h.queue.writeErr = tun.ErrDown
			h.fromUDP("192.0.2.2", inbound)
		},
		DropTUNWriteError: func(h *harness) {
			h.queue.writeErr = errRejected
			h.fromUDP("192.0.2.2", inbound)
		},
	}
}

// TestEveryDrop provokes each drop reason and checks that only that one is counted.
func TestEveryDrop(t *testing.T) {
	cases := provokeDrop()
	for _, d := range Drops() {
		provoke, ok := cases[d]
		if !ok {
			t.Errorf("no test case for %v", d)
			continue
		}
		h := newHarness(t)
		provoke(h)
		if got := h.drops(); len(got) != 1 || got[d] != 1 {
			t.Errorf("%v: drops %v", d, got)
		}
	}
}

func TestDropNames(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range append(Drops(), dropNone) {
		if d.String() == "" || seen[d.String()] {
			t.Errorf("reason %d has name %q", d, d)
		}
		seen[d.String()] = true
	}
	if Drop(200).String() != "drop_200" {
		t.Errorf("unknown reason has name %q", Drop(200))
	}
}

// TestDropCountsSegments drops GSO frames in both directions.
func TestDropCountsSegments(t *testing.T) {
	var train []byte
	for i := range 40 {
		s := tcp4("10.5.2.2", "10.5.1.2", uint32(i)*1000, 1000)
		setID(s, uint16(i))
		train = append(train, s...)
	}
	for why, err := range map[Drop]error{DropTUNDown: tun.ErrDown, DropTUNWriteError: tun.ErrGone} {
		h := newHarness(t)
		h.queue.writeErr = err
		for range 2 { // after ErrGone there is no queue
			h.socket.in = [][]udp.Message{{message("192.0.2.2", 1040, slices.Clone(train))}}
			h.round()
		}
		if d := h.drops(); len(d) != 1 || d[why] != 80 {
			t.Errorf("%v: drops %v", err, d)
		}
	}
	for why, to := range map[Drop]string{DropNoNode: "10.5.9.9", DropMulticast: "224.0.0.251"} {
		h := newHarness(t)
		h.queue.in = []tun.Frame{gsoTCP("10.5.1.2", to, 10_000, 1000)}
		h.round()
		if d := h.drops(); len(d) != 1 || d[why] != 10 {
			t.Errorf("to %s: drops %v", to, d)
		}
	}
}
