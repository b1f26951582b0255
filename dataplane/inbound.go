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

// checkedSender remembers what is known of the sender of the last message, which most often sends the next too.
type checkedSender struct {
	view *view // the answer holds for this view only
	addr netip.Addr
	peer *peer // nil if the address is no node's
}

// inbound moves what has arrived from other nodes to the TUN and reports whether there may be more.
func (w *worker) inbound() bool {
	if w.outer == nil {
		return false
	}
	messages, err := w.outer.Receive()
	if err != nil {
		w.engine.log.Warn("the socket is lost", "worker", w.id, "error", err)
		w.loseOuter()
		return false
	}
	w.counters.messages.Add(uint64(len(messages)))
	for i := range messages {
		w.take(&messages[i])
	}
	w.merger.Flush()
	return len(messages) > 0 && len(messages) == cap(messages)
}

// take hands one train of datagrams to the merger, less what must not pass.
func (w *worker) take(m *udp.Message) {
	check := w.engine.config.SourceCheck
	p := w.sender(m.From.Addr())
	if p == nil && check != CheckOff {
		w.counters.drops[DropUnknownOuterSource].Add(uint64(m.Datagrams()))
		return
	}
	if m.Truncated {
		w.counters.drops[DropTruncated].Add(uint64(m.Datagrams()))
		return
	}
	w.merger.NextBuffer(m.Data[:cap(m.Data)])
	var admitted Traffic
	var passed addresses
	for from := 0; ; {
		n := min(m.Segment, len(m.Data)-from)
		pkt := m.Data[from : from+n]
		d := dropNone
		if !passed.covers(pkt) {
			if d = w.admit(pkt, m.From.Addr(), check); d == dropNone {
				passed.note(pkt)
			}
		}
		if d == dropNone && m.TOS&encap.MaskECN != 0 {
			d = passMark(pkt, m.TOS)
		}
		if d == dropNone {
			admitted.Packets++
			admitted.Bytes += uint64(n)
			w.merger.Add(from, n)
		} else {
			w.drop(d)
		}
		if from += n; from >= len(m.Data) {
			break
		}
	}
	if p != nil && admitted.Packets > 0 {
		p.received.Add(admitted.Packets)
		p.receivedBytes.Add(admitted.Bytes)
	}
}

// passMark carries the congestion mark of the outer header over to the inner packet.
func passMark(pkt []byte, outer uint8) Drop {
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

// addresses are those of a packet that was admitted. Most that follow in a train have the same, and then only
// their length is left to be checked.
type addresses struct {
	v4         uint64 // both, as they lie in the packet
	v6         [32]byte
	has4, has6 bool
}

// note remembers the addresses of pkt.
func (a *addresses) note(pkt []byte) {
	if pkt[0]>>4 == 4 {
		a.v4, a.has4 = binary.BigEndian.Uint64(pkt[12:]), true
	} else {
		copy(a.v6[:], pkt[8:40])
		a.has6 = true
	}
}

// covers reports whether pkt is sane and has these addresses. What is out of the ordinary it leaves to admit.
func (a *addresses) covers(pkt []byte) bool {
	switch {
	case len(pkt) >= 20 && pkt[0] == 0x45:
		return a.has4 && a.v4 == binary.BigEndian.Uint64(pkt[12:]) && int(binary.BigEndian.Uint16(pkt[2:])) == len(pkt)
	case len(pkt) >= 40 && pkt[0]>>4 == 6 && (pkt[6] == encap.ProtoTCP || pkt[6] == encap.ProtoUDP):
		return a.has6 && string(a.v6[:]) == string(pkt[8:40]) && int(binary.BigEndian.Uint16(pkt[4:]))+40 == len(pkt)
	}
	return false
}

// sender returns the node with the outer address, or nil.
func (w *worker) sender(addr netip.Addr) *peer {
	c := &w.checkedFrom
	if c.view == w.view && c.addr == addr {
		return c.peer
	}
	*c = checkedSender{view: w.view, addr: addr}
	if i, ok := w.view.table.ByEndpoint(addr); ok {
		c.peer = w.view.peers[i]
	}
	return c.peer
}

// admit says why the inner packet, which came from the outer address, must not pass, or dropNone.
func (w *worker) admit(pkt []byte, from netip.Addr, check SourceCheck) Drop {
	in, err := encap.ParseInner(pkt)
	if err != nil {
		return parseDrop(err)
	}
	if check == CheckOff {
		return dropNone
	}
	// Nodes behind one NAT share an outer address, hence addresses are compared, not nodes.
	i, leased := w.view.table.Lookup(in.Src)
	switch {
	case leased && w.view.peers[i].to.Addr.Addr() != from, w.view.ours(in.Src):
		return DropSpoofedInnerSource
	case !leased && check == CheckStrict:
		return DropUnleasedInnerSource
	case !w.view.ours(in.Dst):
		return DropNotForUs
	}
	return dropNone
}

// write gives a frame of the merger to the TUN. A super-frame that the kernel refuses is written as the segments
// that it was made of.
func (w *worker) write(h offload.Header, pkt []byte) {
	n := h.Segments(len(pkt))
	if w.inner == nil {
		w.dropAtTUN(tun.ErrGone, n)
		return
	}
	flow, _ := encap.FlowHash(pkt)
	err := w.inner.queues[w.flows.arrives(flow)].Write(tun.Frame{Header: h, Packet: pkt})
	if err == nil {
		w.counters.framesWritten.Add(1)
		w.counters.received.add(n, len(pkt)+(n-1)*int(h.HeaderLen))
		return
	}
	if !errors.Is(err, tun.ErrGSORejected) {
		w.dropAtTUN(err, n)
		return
	}
	w.counters.gsoFramesRejected.Add(1)
	segments, err := offload.Split(h, pkt)
	if err != nil {
		w.dropAtTUN(err, n)
		return
	}
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		segments.Next(w.segment[:n])
		w.write(offload.Header{}, w.segment[:n])
	}
}

// dropAtTUN counts n packets that the TUN refused together.
func (w *worker) dropAtTUN(err error, n int) {
	why := DropTUNWriteError
	if errors.Is(err, tun.ErrDown) {
		why = DropTUNDown
	}
	w.counters.drops[why].Add(uint64(n))
	if errors.Is(err, tun.ErrGone) && w.inner != nil {
		w.loseInner()
	}
}
