package dataplane

import (
	"errors"

	"golang.org/x/sys/unix"

	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap"
	"weft/encap/offload"
)

const (
	// quantumFrames and quantumBytes limit how much a worker reads from a queue before it looks at
	// the others, so that no queue and no direction starves. One GSO frame of any MTU up to 9000
	// fills the bytes.
	quantumFrames = 64
	quantumBytes  = 60_000
	// scratchSize is the size of the largest inner packet, and so of every fragment and ICMP error.
	scratchSize = 65536
)

// outbound moves frames from the TUN to the nodes and reports whether there may be more.
func (w *worker) outbound() bool {
	if w.udpPort == nil {
		return false
	}
	more := w.drain(sparse)
	if w.flows.mayReadBulk() {
		more = w.drain(bulk) || more
	}
	w.flush()
	return more && w.tunPort != nil && !w.blocked
}

// drain forwards up to one quantum from a queue and reports whether there may be more.
func (w *worker) drain(c class) bool {
	n, bytes, empty := 0, 0, !w.ready.queues[c]
	for !empty && n < quantumFrames && bytes < quantumBytes && w.tunPort != nil && !w.blocked {
		frame, err := w.tunPort.queues[c].Read()
		switch {
		case err != nil:
			w.tunLost() // any error makes the queue useless
		case frame.Packet == nil:
			empty = true
		default:
			n++
			bytes += len(frame.Packet)
			w.forward(frame)
		}
	}
	w.counters.framesRead.Add(uint64(n))
	w.flows.onDrain(c, n, empty)
	return !empty
}

// forward sends one frame to the node that has its destination.
func (w *worker) forward(frame tun.Frame) {
	pkt := frame.Packet
	in, err := encap.ParseInner(pkt)
	if err != nil {
		w.dropOut(parseDrop(err), nil, pkt)
		return
	}
	if in.IsNDP(pkt) {
		w.dropOut(DropNeighbourMessage, nil, pkt)
		return
	}
	if in.IsMulticast() {
		w.dropFrame(DropMulticast, frame)
		return
	}
	flow, _ := encap.FlowHash(pkt) // 0 if it has none
	w.flows.onTx(flow, len(pkt))
	p, ok := w.snapshot.table.Lookup(in.Dst)
	if !ok {
		w.dropFrame(DropNoNode, frame)
		w.sendICMP(encap.AppendUnreachable(w.scratch[:0], pkt, &in))
		return
	}
	segments, err := offload.Split(frame.Header, pkt)
	if err != nil {
		w.dropOut(DropBadFrame, nil, pkt)
		return
	}
	key := udp.TxKey{To: p.dest, TOS: in.TOS & w.tosMask, Shard: uint8(flow % uint32(w.shards))}
	if limit := w.maxInner(p); segments.MaxLen() > limit {
		w.sendLong(p, key, &segments, limit)
		return
	}
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		buf := w.reserve(key, n)
		if buf == nil {
			w.dropRest(DropNoRoom, p, &segments)
			return
		}
		segments.Next(buf)
		if w.taps != nil {
			w.tapOut(p, buf, dropNone)
		}
	}
}

// dropFrame drops each packet of a frame.
func (w *worker) dropFrame(reason Drop, frame tun.Frame) {
	segments, err := offload.Split(frame.Header, frame.Packet)
	if err != nil {
		w.dropOut(DropBadFrame, nil, frame.Packet)
		return
	}
	w.dropRest(reason, nil, &segments)
}

// dropRest drops the remaining segments of a frame. p is nil if no node has the destination.
func (w *worker) dropRest(reason Drop, p *peer, segments *offload.Splitter) {
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		segments.Next(w.segment[:n])
		w.dropOut(reason, p, w.segment[:n])
	}
}

// maxInner returns the length in bytes of the longest inner packet that fits the cached path MTU.
func (w *worker) maxInner(p *peer) int {
	mtu := p.cachedPathMTU(w.now)
	switch {
	case mtu == 0:
		return scratchSize
	case p.dest.Addr.Addr().Is4():
		return mtu - encap.OverheadUDP4
	default:
		return mtu - encap.OverheadUDP6
	}
}

// reserve returns n bytes for the next datagram of key, or nil if the send queue stays full after a
// flush.
func (w *worker) reserve(key udp.TxKey, n int) []byte {
	buf := w.udpPort.Reserve(key, n)
	if buf == nil && w.flush() {
		buf = w.udpPort.Reserve(key, n)
	}
	if buf != nil {
		w.pending.Packets++
		w.pending.Bytes += uint64(n)
	}
	return buf
}

// flush sends the reserved datagrams and reports whether none is left.
func (w *worker) flush() bool {
	w.blocked = !w.udpPort.Flush(w.onUndelivered)
	if w.blocked {
		return false
	}
	if w.pending.Packets > 0 {
		w.counters.sent.add(int(w.pending.Packets), int(w.pending.Bytes))
		w.pending = Traffic{}
	}
	return true
}

// undelivered handles a datagram that the kernel rejected. EMSGSIZE is the only way to learn
// the path MTU, which the inner sender must learn, too.
func (w *worker) undelivered(to *udp.Destination, pkt []byte, err error) {
	w.pending.Packets--
	w.pending.Bytes -= uint64(len(pkt))
	if !errors.Is(err, unix.EMSGSIZE) {
		to.Refused(err, w.now())
		w.dropRefused(to, pkt)
		return
	}
	in, parseErr := encap.ParseInner(pkt)
	if parseErr != nil {
		w.dropRefused(to, pkt)
		return
	}
	p, ok := w.snapshot.table.Lookup(in.Dst)
	if !ok || p.dest != to {
		w.dropRefused(to, pkt) // the nodes have changed meanwhile
		return
	}
	limit := w.maxInner(p)
	if len(pkt) <= limit { // else an earlier packet of this flush has probed the path
		mtu, err := w.probePathMTU(p)
		if err != nil {
			w.dropRefused(to, pkt)
			return
		}
		p.setPathMTU(mtu, w.now())
		limit = w.maxInner(p)
	}
	if len(pkt) <= limit {
		to.Refused(err, w.now())
		w.dropRefused(to, pkt) // it fits the path: rejected for another reason
		return
	}
	w.sendTooLong(p, pkt, &in, limit)
}

// sendLong sends a frame of which some segments are longer than limit, one by one.
func (w *worker) sendLong(p *peer, key udp.TxKey, segments *offload.Splitter, limit int) {
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		pkt := w.segment[:segments.Next(w.segment[:n])]
		if n <= limit {
			if buf := w.reserve(key, n); buf == nil {
				w.dropOut(DropNoRoom, p, pkt)
			} else {
				copy(buf, pkt)
				if w.taps != nil {
					w.tapOut(p, buf, dropNone)
				}
			}
			continue
		}
		in, err := encap.ParseInner(pkt)
		if err != nil {
			w.dropOut(parseDrop(err), p, pkt)
			continue
		}
		w.flush() // first, to keep the order
		w.sendTooLong(p, pkt, &in, limit)
	}
}

// sendTooLong handles a packet that is longer than limit, the longest that fits the path to the
// node. It fragments the packet if allowed, else drops it and sends an ICMP error. An IPv6 sender
// does not reduce its packets below the minimum MTU, so packets up to that size are sent in outer
// fragments (RFC 2473 section 7.1).
func (w *worker) sendTooLong(p *peer, pkt []byte, in *encap.Inner, limit int) {
	if in.Version == 6 && len(pkt) <= encap.MinMTU6 {
		w.sendNow(p, pkt)
		return
	}
	f, ok := encap.NewFragmenter(pkt, in, limit)
	if !ok {
		w.dropOut(DropPacketTooBig, p, pkt)
		w.sendICMP(encap.AppendTooBig(w.scratch[:0], pkt, in, limit))
		return
	}
	for piece := f.Next(w.scratch[:0]); len(piece) > 0; piece = f.Next(w.scratch[:0]) {
		if !w.sendNow(p, piece) {
			return
		}
	}
}

// sendNow sends a packet past the send queue, which may be in the middle of a flush, and reports
// whether that succeeded.
func (w *worker) sendNow(p *peer, pkt []byte) bool {
	if err := w.udpPort.Send(p.dest, pkt); err != nil {
		p.dest.Refused(err, w.now())
		w.dropOut(DropSendError, p, pkt)
		return false
	}
	w.counters.sent.add(1, len(pkt))
	if w.taps != nil {
		w.tapOut(p, pkt, dropNone)
	}
	return true
}

// sendICMP writes an ICMP error to the TUN; the kernel routes it to the inner sender. If msg is
// empty, no error may be sent.
func (w *worker) sendICMP(msg []byte) {
	if len(msg) == 0 || w.tunPort == nil {
		return
	}
	if !w.limiter.allow(w.now()) {
		w.counters.icmpSuppressed.Add(1)
		return
	}
	if err := w.tunPort.queues[sparse].Write(tun.Frame{Packet: msg}); err != nil {
		w.tunWriteFailed(err, msg, 1)
		return
	}
	w.counters.icmpSent.Add(1)
	if w.taps != nil {
		w.tapTUN(msg, dropNone)
	}
}

// parseDrop maps an error of encap.ParseInner to a reason.
func parseDrop(err error) Drop {
	switch err {
	case encap.ErrBadVersion:
		return DropBadVersion
	case encap.ErrBadLength:
		return DropBadLength
	}
	return DropTooShort
}
