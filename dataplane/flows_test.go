package dataplane

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"testing"

	"weft/dataplane/tun"
	"weft/deploy/lab"
)

func TestFlowClasses(t *testing.T) {
	const flow, other = 7, 8
	c := flowClasses{now: tickOf(0)}
	is := func(want class, when string) {
		t.Helper()
		if got := c.queueFor(flow); got != want {
			t.Errorf("%s: class %d, want %d", when, got, want)
		}
	}
	is(sparse, "first packet")
	c.onTx(flow, bulkFrame-1)
	is(sparse, "after a short frame")
	c.onTx(flow, bulkFrame)
	is(bulk, "after a long frame")
	if c.queueFor(other) != sparse {
		t.Error("another flow became a bulk flow")
	}
	for range 5 { // each packet keeps the class
		c.now++
		c.onTx(flow, 100)
		c.now++
		is(bulk, "continuous packets")
	}
	c.now += 2
	is(sparse, "after a silence")
	c.onTx(flow, 100)
	is(sparse, "after a silence and a short frame")
}

// TestSparsePassesBulk sends a packet while the bulk queue is long.
func TestSparsePassesBulk(t *testing.T) {
	h := newHarness(t)
	for range 10 {
		h.bulk.in = append(h.bulk.in, gsoTCP("10.5.1.3", "10.5.2.2", 62_000, 1348))
	}
	h.round()
	ping := packetBetween("10.5.1.2", "10.5.2.2")
	h.fromTUN(ping)
	if len(h.bulk.in) != 8 {
		t.Errorf("%d of 10 GSO frames left after two rounds, want 8", len(h.bulk.in))
	}
	if !slices.ContainsFunc(h.socket.sent, func(d sentTo) bool { return string(d.data) == string(ping) }) {
		t.Error("the packet waits for the bulk flow")
	}
}

// stream generates consecutive TCP segments, to be read from the TUN.
type stream struct{ next uint32 }

func (s *stream) segments(n int) (all []tun.Frame) {
	for range n {
		all = append(all, tun.Frame{Packet: tcp4("10.5.1.2", "10.5.2.2", s.next, 100)})
		s.next += 100
	}
	return all
}

// gsoFrame returns a frame that makes the stream a bulk flow.
func (s *stream) gsoFrame() tun.Frame {
	const n = 20_000
	f := gsoTCP("10.5.1.2", "10.5.2.2", n, 1000)
	binary.BigEndian.PutUint32(f.Packet[24:], s.next)
	s.next += n
	return f
}

// acknowledge receives an ACK of a stream.
func (h *harness) acknowledge() {
	ack := tcp4("10.5.2.2", "10.5.1.2", 0, 0)
	copy(ack[20:], []byte{5001 >> 8, 5001 & 0xff, 4000 >> 8, 4000 & 0xff})
	h.fromUDP("192.0.2.2", ack)
}

// checkOrder checks that the whole stream was sent in order.
func (s *stream) checkOrder(t *testing.T, h *harness) {
	t.Helper()
	next := uint32(0)
	for _, d := range h.socket.sent {
		if d.data[9] != 6 {
			continue
		}
		if got := binary.BigEndian.Uint32(d.data[24:]); got != next {
			t.Fatalf("sequence number %d, want %d", got, next)
		}
		next += uint32(len(d.data) - 40)
	}
	if next != s.next {
		t.Errorf("sent %d of %d bytes", next, s.next)
	}
}

// TestFlowMoveOrder expects that a flow's frames in the sparse queue are sent before those in the
// bulk queue.
func TestFlowMoveOrder(t *testing.T) {
	h, s := newHarness(t), &stream{}
	h.queue.in = append([]tun.Frame{s.gsoFrame()}, s.segments(4*quantumFrames)...)
	h.acknowledge()
	if len(h.bulk.out) != 1 || len(h.queue.out) != 0 {
		t.Fatal("the ACK was written to the sparse queue")
	}
	h.bulk.in = s.segments(2 * quantumFrames)
	h.round()
	// A packet of another flow does not delay the stream forever.
	h.queue.in = append(h.queue.in, tun.Frame{Packet: packetBetween("10.5.1.9", "10.5.2.9")})
	for range 10 {
		h.round()
	}
	s.checkOrder(t, h)
}

// TestFlowMoveOrderBlocked fills the socket meanwhile and wakes the worker by a received packet.
// The TUN queues, which it does not poll then, are not empty.
func TestFlowMoveOrderBlocked(t *testing.T) {
	fds := readable(t)
	h, s := newHarness(t), &stream{}
	h.queue.in = append([]tun.Frame{s.gsoFrame()}, s.segments(4*quantumFrames)...)
	h.socket.fd, h.socket.full = int(fds[0].Fd), 2
	h.acknowledge()
	if !h.blocked || h.flows.mayReadBulk() {
		t.Fatalf("blocked %v, may read bulk %v", h.blocked, h.flows.mayReadBulk())
	}
	h.bulk.in = s.segments(2 * quantumFrames)
	must(t, h.wait())
	if h.worker.round() || !h.blocked {
		t.Fatal("the socket is no longer full")
	}
	for range 20 {
		h.round()
	}
	s.checkOrder(t, h)
}

// TestBulkNotStarved moves a flow while the sparse queue never becomes empty.
func TestBulkNotStarved(t *testing.T) {
	h := newHarness(t)
	h.flows.sparseBacklog = maxQueueLen
	h.queue.repeat, h.queue.in = true, []tun.Frame{{Packet: packetBetween("10.5.1.2", "10.5.2.2")}}
	h.bulk.in = []tun.Frame{gsoTCP("10.5.1.3", "10.5.2.2", 62_000, 1348)}
	rounds := 0
	for ; len(h.bulk.in) > 0 && rounds <= maxQueueLen; rounds++ {
		h.round()
		h.socket.sent = nil
	}
	if want := (maxQueueLen + quantumFrames - 1) / quantumFrames; rounds != want {
		t.Errorf("%d rounds, want %d", rounds, want)
	}
}

// TestRoundReportsMore fills one queue with more than a quantum. The other queue must not be read.
func TestRoundReportsMore(t *testing.T) {
	for c := range numClasses {
		h := newHarness(t)
		queues := []*fakeQueue{h.queue, h.bulk}
		for range quantumFrames + 1 {
			queues[c].in = append(queues[c].in, tun.Frame{Packet: packetBetween("10.5.1.2", "10.5.2.2")})
		}
		queues[1-c].readErr = errRejected // reading it loses the device
		h.ready.queues[c] = true
		if !h.worker.round() || h.tunPort == nil {
			t.Errorf("class %d: no more reported, or the other queue was read", c)
		}
	}
}

// countingQueue counts the bytes read from a queue.
type countingQueue struct {
	tunQueue
	read *atomic.Int64
}

func (q countingQueue) Read() (tun.Frame, error) {
	f, err := q.tunQueue.Read()
	q.read.Add(int64(len(f.Packet)))
	return f, err
}

// countReads counts the bytes that an engine reads from the queues of each class. It must not run
// yet.
func countReads(e *Engine, read *[numClasses]atomic.Int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.workers {
		for c, q := range w.nextTUN.Load().queues {
			counting := countingQueue{q, &read[c]}
			delete(e.closers, q)
			e.closers[counting] = struct{}{}
			w.nextTUN.Load().queues[c] = counting
		}
	}
}

// TestNetnsFlowClasses sends a TCP stream between pods, then small datagrams, and checks through
// which queues they leave the sender's node.
func TestNetnsFlowClasses(t *testing.T) {
	var read [numClasses]atomic.Int64
	ov := startPrepared(t, lab.Options{}, func(node int, e *Engine) {
		if node == 0 {
			countReads(e, &read)
		}
	}, Config{})
	from, to := ov.pod(0), ov.pod(1)
	const size = 64 << 20
	must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), size))
	if n := read[bulk].Load(); n < size*9/10 {
		t.Errorf("%d bytes of a stream of %d read from the bulk queues", n, size)
	}
	before := read[sparse].Load()
	must(t, lab.CheckUDP(t.Context(), from.NS, to.NS, podAddr(1), 1000, 1000, 1000, 1000))
	if n := read[sparse].Load() - before; n < 3*1000 { // the first may be in any queue
		t.Errorf("%d bytes of four datagrams of 1,000 read from the sparse queues", n)
	}
}
