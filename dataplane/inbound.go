package dataplane

import (
	"errors"
	"net/netip"

	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap"
)

// checkedSender remembers what is known of the sender of the last message, which most often sends the next too.
type checkedSender struct {
	view *view // the answer holds for this view only
	addr netip.Addr
	peer *peer // nil if the address is no node's
}

// inbound moves what has arrived from other nodes to the TUN and reports whether there was anything.
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
	for i := range messages {
		w.take(&messages[i])
	}
	return len(messages) > 0
}

// take handles one train of datagrams.
func (w *worker) take(m *udp.Message) {
	check := SourceCheck(w.engine.check.Load())
	p := w.sender(m.From.Addr())
	if p == nil && check != CheckOff {
		w.counters.drops[DropUnknownOuterSource].Add(uint64(m.Datagrams()))
		return
	}
	var taken Traffic
	for rest := m.Data; ; {
		pkt := rest[:min(m.Segment, len(rest))]
		rest = rest[len(pkt):]
		if d := w.admit(pkt, m.From.Addr(), check); d != dropNone {
			w.drop(d)
		} else if w.deliver(pkt) {
			taken.Packets++
			taken.Bytes += uint64(len(pkt))
		}
		if len(rest) == 0 {
			break
		}
	}
	if taken.Packets == 0 {
		return
	}
	w.counters.received.add(int(taken.Packets), int(taken.Bytes))
	if p != nil {
		p.received.Add(taken.Packets)
		p.receivedBytes.Add(taken.Bytes)
	}
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
		return DropUnleasedSource
	case !w.view.ours(in.Dst):
		return DropNotForUs
	}
	return dropNone
}

// deliver writes the inner packet to the TUN and reports whether the kernel took it.
func (w *worker) deliver(pkt []byte) bool {
	if w.inner == nil {
		w.drop(DropTUNError)
		return false
	}
	if err := w.inner.Write(tun.Frame{Packet: pkt}); err != nil {
		w.dropAtTUN(err)
		return false
	}
	return true
}

// dropAtTUN counts a packet that the TUN refused.
func (w *worker) dropAtTUN(err error) {
	switch {
	case errors.Is(err, tun.ErrDown):
		w.drop(DropTUNDown)
	case errors.Is(err, tun.ErrGone):
		w.drop(DropTUNError)
		w.loseInner()
	default:
		w.drop(DropTUNError)
	}
}
