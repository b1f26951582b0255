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
	// quantumFrames and quantumBytes are how much a worker reads from a queue before it looks at the others, so that
	// no queue and no direction starves another. One super-frame of any MTU up to 9000 fills the bytes.
	quantumFrames = 64
	quantumBytes  = 60_000
	// scratchSize holds the largest inner packet, and with it every fragment and ICMP error.
	scratchSize = 65536
	// outerOverhead4 and outerOverhead6 turn a path MTU into the longest inner packet.
	outerOverhead4 = encap.OverheadUDP4
	outerOverhead6 = encap.OverheadUDP6
)

// outbound moves frames from the TUN to the nodes and reports whether there may be more.
func (w *worker) outbound() bool {
	if w.outer == nil {
		return false
	}
	more := w.drain(sparse)
	if w.flows.caughtUp() {
		more = w.drain(bulk) || more
	}
	w.flush()
	return more && w.inner != nil && !w.blocked
}

// drain forwards a quantum of what is in the queue and reports whether there may be more.
func (w *worker) drain(c class) bool {
	n, bytes, empty := 0, 0, !w.ready.queues[c]
	for !empty && n < quantumFrames && bytes < quantumBytes && w.inner != nil && !w.blocked {
		frame, err := w.inner.queues[c].Read()
		switch {
		case err != nil:
			w.loseInner() // whatever it is, a queue that cannot be read is of no use
		case frame.Packet == nil:
			empty = true
		default:
			n++
			bytes += len(frame.Packet)
			w.forward(frame)
		}
	}
	w.counters.framesRead.Add(uint64(n))
	w.flows.drained(c, n, empty)
	return !empty
}

// forward sends one frame to the node that has its destination.
func (w *worker) forward(frame tun.Frame) {
	pkt := frame.Packet
	in, err := encap.ParseInner(pkt)
	if err != nil {
		w.drop(parseDrop(err))
		return
	}
	if in.IsNDP(pkt) {
		w.drop(DropNeighbourMessage)
		return
	}
	if in.IsMulticast() {
		w.dropFrame(DropMulticast, frame)
		return
	}
	flow, _ := encap.FlowHash(pkt) // 0 where there is none
	w.flows.leaves(flow, len(pkt))
	i, ok := w.view.table.Lookup(in.Dst)
	if !ok {
		w.dropFrame(DropNoNode, frame)
		w.tell(encap.AppendUnreachable(w.scratch[:0], pkt, &in))
		return
	}
	segments, err := offload.Split(frame.Header, pkt)
	if err != nil {
		w.drop(DropBadFrame)
		return
	}
	p := w.view.peers[i]
	key := udp.TxKey{To: p.to, TOS: in.TOS & w.tosMask, Shard: uint8(flow % uint32(w.shares))}
	if limit := w.limit(p); segments.MaxLen() > limit {
		w.sendLong(p, key, &segments, limit)
		return
	}
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		buf := w.reserve(key, n)
		if buf == nil {
			w.dropRest(DropNoRoom, &segments)
			return
		}
		segments.Next(buf)
	}
}

// dropFrame drops each packet that a frame stands for.
func (w *worker) dropFrame(why Drop, frame tun.Frame) {
	segments, err := offload.Split(frame.Header, frame.Packet)
	if err != nil {
		w.drop(DropBadFrame)
		return
	}
	w.dropRest(why, &segments)
}

// dropRest drops the segments that have not left.
func (w *worker) dropRest(why Drop, segments *offload.Splitter) {
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		segments.Next(w.segment[:n])
		w.drop(why)
	}
}

// limit returns the longest inner packet in bytes that the path to the node is known to carry.
func (w *worker) limit(p *peer) int {
	outer := p.knownPathMTU(w.now)
	switch {
	case outer == 0:
		return scratchSize
	case p.to.Addr.Addr().Is4():
		return outer - outerOverhead4
	default:
		return outer - outerOverhead6
	}
}

// reserve returns n bytes for the next datagram of key, or nil if the kernel has no room for what is
// there already.
func (w *worker) reserve(key udp.TxKey, n int) []byte {
	buf := w.outer.Reserve(key, n)
	if buf == nil && w.flush() {
		buf = w.outer.Reserve(key, n)
	}
	if buf != nil {
		w.sent.Packets++
		w.sent.Bytes += uint64(n)
	}
	return buf
}

// flush sends what is queued and reports whether all of it has gone.
func (w *worker) flush() bool {
	w.blocked = !w.outer.Flush(w.refused)
	if w.blocked {
		return false
	}
	if w.sent.Packets > 0 {
		w.counters.sent.add(int(w.sent.Packets), int(w.sent.Bytes))
		w.sent = Traffic{}
	}
	return true
}

// undelivered handles a datagram that the kernel refused to send. One that is too long for the path is the
// only way to learn the path's MTU, and its sender has to learn it too.
func (w *worker) undelivered(to *udp.Destination, pkt []byte, err error) {
	w.sent.Packets--
	w.sent.Bytes -= uint64(len(pkt))
	if !errors.Is(err, unix.EMSGSIZE) {
		w.drop(DropSendError)
		return
	}
	in, parseErr := encap.ParseInner(pkt)
	if parseErr != nil {
		w.drop(DropSendError)
		return
	}
	i, ok := w.view.table.Lookup(in.Dst)
	if !ok || w.view.peers[i].to != to {
		w.drop(DropSendError) // the nodes have changed meanwhile
		return
	}
	p := w.view.peers[i]
	limit := w.limit(p)
	if len(pkt) <= limit { // else the first that was refused of this flush has asked
		mtu, err := w.pathMTU(p)
		if err != nil {
			w.drop(DropSendError)
			return
		}
		p.learn(mtu, w.now())
		limit = w.limit(p)
	}
	if len(pkt) <= limit {
		w.drop(DropSendError) // the path would carry it: refused for another reason
		return
	}
	w.tooLong(p, pkt, &in, limit)
}

// sendLong sends a frame of which some segments are longer than limit, one by one.
func (w *worker) sendLong(p *peer, key udp.TxKey, segments *offload.Splitter, limit int) {
	for n := segments.NextLen(); n > 0; n = segments.NextLen() {
		pkt := w.segment[:segments.Next(w.segment[:n])]
		if n <= limit {
			if buf := w.reserve(key, n); buf == nil {
				w.drop(DropNoRoom)
			} else {
				copy(buf, pkt)
			}
			continue
		}
		in, err := encap.ParseInner(pkt)
		if err != nil {
			w.drop(parseDrop(err))
			continue
		}
		w.flush() // what came before leaves before
		w.tooLong(p, pkt, &in, limit)
	}
}

// tooLong handles a packet that is longer than limit, what the path to the node carries: it is cut if that is
// allowed, and else dropped and its sender told. A sender of IPv6 that is told makes no packets shorter than every link has
// to carry: those are left to outer fragments (RFC 2473 section 7.1).
func (w *worker) tooLong(p *peer, pkt []byte, in *encap.Inner, limit int) {
	if in.Version == 6 && len(pkt) <= encap.MinMTU6 {
		w.sendPast(p, pkt)
		return
	}
	f, ok := encap.NewFragmenter(pkt, in, limit)
	if !ok {
		w.drop(DropPacketTooBig)
		w.tell(encap.AppendTooBig(w.scratch[:0], pkt, in, limit))
		return
	}
	for piece := f.Next(w.scratch[:0]); len(piece) > 0; piece = f.Next(w.scratch[:0]) {
		if !w.sendPast(p, piece) {
			return
		}
	}
}

// sendPast sends a packet past the queue, which may just be being sent, and reports whether that worked.
func (w *worker) sendPast(p *peer, pkt []byte) bool {
	if err := w.outer.Send(p.to, pkt); err != nil {
		w.drop(DropSendError)
		return false
	}
	w.counters.sent.add(1, len(pkt))
	return true
}

// tell writes the ICMP error msg to the TUN, from where it finds the inner sender. An empty one means that the
// packet must not be answered.
func (w *worker) tell(msg []byte) {
	if len(msg) == 0 || w.inner == nil {
		return
	}
	if !w.limiter.allow(w.now()) {
		w.counters.icmpSuppressed.Add(1)
		return
	}
	if err := w.inner.queues[sparse].Write(tun.Frame{Packet: msg}); err != nil {
		w.dropAtTUN(err, 1)
		return
	}
	w.counters.icmpSent.Add(1)
}

// parseDrop names the reason for which ParseInner refused a packet.
func parseDrop(err error) Drop {
	switch err {
	case encap.ErrBadVersion:
		return DropBadVersion
	case encap.ErrBadLength:
		return DropBadLength
	}
	return DropTooShort
}
