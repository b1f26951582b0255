package dataplane

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap"
	"weft/encap/offload"
)

// lastSender caches the last sender: consecutive messages usually share it.
type lastSender struct {
	snapshot *snapshot // that the result is valid for
	addr     netip.Addr
	peer     *peer // nil if the address is not a node's
}

// inbound moves datagrams from other nodes to the TUN and reports whether there may be more.
func (w *worker) inbound() bool {
	if w.udpPort == nil {
		return false
	}
	messages, err := w.udpPort.Receive()
	if err != nil {
		w.engine.log.Warn("socket failed", "worker", w.id, "err", err)
		w.udpLost()
		return false
	}
	w.counters.messages.Add(uint64(len(messages)))
	for i := range messages {
		w.receive(&messages[i])
	}
	w.merger.Flush()
	return len(messages) > 0 && len(messages) == cap(messages)
}

// receive checks the sender of one train of datagrams and filters the train.
func (w *worker) receive(m *udp.Message) {
	check := w.engine.config.SourceCheck
	p := w.sender(m.From.Addr())
	switch {
	case p == nil && check != CheckOff:
		w.counters.drops[DropUnknownOuterSource].Add(uint64(m.Datagrams()))
		w.unknown.add(m.From.Addr(), m.Datagrams(), w.now())
		w.tapTrain(p, m, DropUnknownOuterSource)
		return
	case m.Truncated:
		w.counters.drops[DropTruncated].Add(uint64(m.Datagrams()))
		w.tapTrain(p, m, DropTruncated)
		return
	}
	passed := w.filter(m, p, check)
	if p != nil && passed.Packets > 0 {
		p.received.Add(passed.Packets)
		p.receivedBytes.Add(passed.Bytes)
	}
}

// filter passes the valid datagrams of a train to the merger, drops the others, and returns the
// traffic passed.
func (w *worker) filter(m *udp.Message, p *peer, check SourceCheck) (passed Traffic) {
	w.merger.NextBuffer(m.Data[:cap(m.Data)])
	var valid addrPair
	for from := 0; ; {
		n := min(m.Segment, len(m.Data)-from)
		pkt := m.Data[from : from+n]
		d := dropNone
		if !valid.match(pkt) {
			if d = w.checkInner(pkt, m.From.Addr(), check); d == dropNone {
				valid.remember(pkt)
			}
		}
		if d == dropNone && m.TOS&encap.MaskECN != 0 {
			d = decapECN(pkt, m.TOS)
		}
		if w.taps != nil {
			w.tapIn(p, m.From, pkt, d)
		}
		if d == dropNone {
			passed.Packets++
			passed.Bytes += uint64(n)
			w.merger.Add(from, n)
		} else {
			w.drop(d, pkt)
		}
		if from += n; from >= len(m.Data) {
			return passed
		}
	}
}

// decapECN copies the congestion mark of the outer TOS to the inner packet.
func decapECN(pkt []byte, outer uint8) Drop {
	inner := encap.TOS(pkt)
	tos, ok := encap.DecapTOS(inner, outer)
	if !ok {
		return DropCongestion
	}
	if tos != inner {
		encap.SetTOS(pkt, tos)
	}
	return dropNone
}

// addrPair holds the addresses of the last valid packet of each family. Most packets of a train
// have the same ones, so that only their length must be checked.
type addrPair struct {
	v4         uint64 // source and destination, as in the header
	v6         [32]byte
	has4, has6 bool
}

// remember stores the addresses of pkt.
func (a *addrPair) remember(pkt []byte) {
	if pkt[0]>>4 == 4 {
		a.v4, a.has4 = binary.BigEndian.Uint64(pkt[12:]), true
	} else {
		copy(a.v6[:], pkt[8:40])
		a.has6 = true
	}
}

// match reports whether pkt is well-formed and has the stored addresses. It returns false for
// packets with options or rare protocols, which checkInner then parses.
func (a *addrPair) match(pkt []byte) bool {
	switch {
	case len(pkt) >= 20 && pkt[0] == 0x45:
		return a.has4 && a.v4 == binary.BigEndian.Uint64(pkt[12:]) &&
			int(binary.BigEndian.Uint16(pkt[2:])) == len(pkt)
	case len(pkt) >= 40 && pkt[0]>>4 == 6 && (pkt[6] == encap.ProtoTCP || pkt[6] == encap.ProtoUDP):
		return a.has6 && string(a.v6[:]) == string(pkt[8:40]) &&
			int(binary.BigEndian.Uint16(pkt[4:]))+40 == len(pkt)
	}
	return false
}

// sender returns the node with the outer address, or nil.
func (w *worker) sender(addr netip.Addr) *peer {
	c := &w.lastSender
	if c.snapshot == w.snapshot && c.addr == addr {
		return c.peer
	}
	*c = lastSender{snapshot: w.snapshot, addr: addr}
	c.peer, _ = w.snapshot.table.ByEndpoint(addr) // nil if there is none
	return c.peer
}

// checkInner returns the reason for dropping an inner packet from the outer address, or dropNone.
func (w *worker) checkInner(pkt []byte, from netip.Addr, check SourceCheck) Drop {
	in, err := encap.ParseInner(pkt)
	if err != nil {
		return parseDrop(err)
	}
	if check == CheckOff {
		return dropNone
	}
	// Compare addresses, not nodes: nodes behind one NAT share an outer address.
	owner, leased := w.snapshot.table.Lookup(in.Src)
	switch {
	case leased && owner.dest.Addr.Addr() != from, w.snapshot.isLocal(in.Src):
		return DropSpoofedInnerSource
	case !leased && check == CheckStrict:
		return DropUnleasedInnerSource
	case !w.snapshot.isLocal(in.Dst):
		return DropNotForUs
	}
	return dropNone
}

// writeTUN writes a frame of the merger to the TUN. If the kernel rejects a GSO frame, it writes
// the segments instead.
func (w *worker) writeTUN(h offload.Header, pkt []byte) {
	n := h.Segments(len(pkt))
	if w.tunPort == nil {
		w.tunWriteFailed(tun.ErrGone, pkt, n)
		return
	}
	flow, _ := encap.FlowHash(pkt)
	err := w.tunPort.queues[w.flows.queueFor(flow)].Write(tun.Frame{Header: h, Packet: pkt})
	if err == nil {
		w.counters.framesWritten.Add(1)
		w.counters.received.add(n, len(pkt)+(n-1)*int(h.HeaderLen))
		return
	}
	if !errors.Is(err, tun.ErrGSORejected) {
		w.tunWriteFailed(err, pkt, n)
		return
	}
	w.counters.gsoFramesRejected.Add(1)
	segments, err := offload.Split(h, pkt)
	if err != nil {
		w.tunWriteFailed(err, pkt, n)
		return
	}
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		segments.Next(w.segment[:n])
		w.writeTUN(offload.Header{}, w.segment[:n])
	}
}

// tunWriteFailed drops a frame of n packets that could not be written.
func (w *worker) tunWriteFailed(err error, frame []byte, n int) {
	reason := DropTUNWriteError
	if errors.Is(err, tun.ErrDown) {
		reason = DropTUNDown
	}
	w.counters.drops[reason].Add(uint64(n))
	w.last.set(reason, frame, w.now())
	if w.taps != nil {
		w.tapTUN(frame, reason)
	}
	if errors.Is(err, tun.ErrGone) && w.tunPort != nil {
		w.tunLost()
	}
}
