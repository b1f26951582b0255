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
		if got := c.arrives(flow); got != want {
			t.Errorf("%s: class %d", when, got)
		}
	}
	is(sparse, "before anything")
	c.leaves(flow, bulkFrame-1)
	is(sparse, "after a short frame")
	c.leaves(flow, bulkFrame)
	is(bulk, "after a long frame")
	if c.arrives(other) != sparse {
		t.Error("another flow has become a bulk flow")
	}
	for range 5 { // each keeps it alive
		c.now++
		c.leaves(flow, 100)
		c.now++
		is(bulk, "while packets keep coming")
	}
	c.now += 2
	is(sparse, "after a silence")
	c.leaves(flow, 100)
	is(sparse, "after a short frame that followed a silence")
}

// TestSparseFlowsPassBulkFlows has a packet come while a bulk flow's queue is long.
func TestSparseFlowsPassBulkFlows(t *testing.T) {
	b := newBench(t)
	for range 10 {
		b.bulk.in = append(b.bulk.in, superTCP("10.5.1.3", "10.5.2.2", 62_000, 1348))
	}
	b.round()
	ping := packetBetween("10.5.1.2", "10.5.2.2")
	b.leave(ping)
	if len(b.bulk.in) != 8 {
		t.Errorf("%d of 10 super-frames left after two rounds", len(b.bulk.in))
	}
	if !slices.ContainsFunc(b.socket.sent, func(d sentTo) bool { return string(d.data) == string(ping) }) {
		t.Error("the packet has to wait")
	}
}

// stream is TCP segments in order, to come out of the TUN.
type stream struct{ next uint32 }

func (s *stream) segments(n int) (all []tun.Frame) {
	for range n {
		all = append(all, tun.Frame{Packet: tcp4("10.5.1.2", "10.5.2.2", s.next, 100)})
		s.next += 100
	}
	return all
}

// superFrame makes the stream a bulk flow.
func (s *stream) superFrame() tun.Frame {
	const n = 20_000
	f := superTCP("10.5.1.2", "10.5.2.2", n, 1000)
	binary.BigEndian.PutUint32(f.Packet[24:], s.next)
	s.next += n
	return f
}

// acknowledge has an acknowledgement of a stream come in.
func (b *bench) acknowledge() {
	ack := tcp4("10.5.2.2", "10.5.1.2", 0, 0)
	copy(ack[20:], []byte{5001 >> 8, 5001 & 0xff, 4000 >> 8, 4000 & 0xff})
	b.arrive("192.0.2.2", ack)
}

// leftInOrder checks that all of the stream has left, without gaps.
func (s *stream) leftInOrder(t *testing.T, b *bench) {
	t.Helper()
	next := uint32(0)
	for _, d := range b.socket.sent {
		if d.data[9] != 6 {
			continue
		}
		if got := binary.BigEndian.Uint32(d.data[24:]); got != next {
			t.Fatalf("sequence number %d where %d is due", got, next)
		}
		next += uint32(len(d.data) - 40)
	}
	if next != s.next {
		t.Errorf("the last of %d bytes is missing: %d", s.next, next)
	}
}

// TestFlowMovesInOrder: what a flow left in the queue of sparse flows goes before what comes through the other.
func TestFlowMovesInOrder(t *testing.T) {
	b, s := newBench(t), &stream{}
	b.queue.in = append([]tun.Frame{s.superFrame()}, s.segments(4*quantumFrames)...)
	b.acknowledge()
	if len(b.bulk.out) != 1 || len(b.queue.out) != 0 {
		t.Fatalf("the acknowledgement went to the queue of sparse flows")
	}
	b.bulk.in = s.segments(2 * quantumFrames)
	b.round()
	b.queue.in = append(b.queue.in, tun.Frame{Packet: packetBetween("10.5.1.9", "10.5.2.9")}) // and does not hold it up for ever
	for range 10 {
		b.round()
	}
	s.leftInOrder(t, b)
}

// TestBlockedFlowMovesInOrder has the socket without room meanwhile, and the worker woken by what arrives: the queues,
// which it does not poll then, are not empty.
func TestBlockedFlowMovesInOrder(t *testing.T) {
	arrived := readable(t)
	b, s := newBench(t), &stream{}
	b.queue.in = append([]tun.Frame{s.superFrame()}, s.segments(4*quantumFrames)...)
	b.socket.fd, b.socket.full = int(arrived[0].Fd), 2
	b.acknowledge()
	if !b.blocked || b.flows.caughtUp() {
		t.Fatalf("blocked %v, caught up %v", b.blocked, b.flows.caughtUp())
	}
	b.bulk.in = s.segments(2 * quantumFrames)
	must(t, b.wait())
	if b.worker.round() || !b.blocked {
		t.Fatal("the socket is not blocked any more")
	}
	for range 20 {
		b.round()
	}
	s.leftInOrder(t, b)
}

// TestOverloadedQueueDoesNotStarveBulkFlows has a flow move while packets of others come faster than they can be sent.
func TestOverloadedQueueDoesNotStarveBulkFlows(t *testing.T) {
	b := newBench(t)
	b.flows.catchUp = longestQueue
	b.queue.keep, b.queue.in = true, []tun.Frame{{Packet: packetBetween("10.5.1.2", "10.5.2.2")}}
	b.bulk.in = []tun.Frame{superTCP("10.5.1.3", "10.5.2.2", 62_000, 1348)}
	rounds := 0
	for ; len(b.bulk.in) > 0 && rounds <= longestQueue; rounds++ {
		b.round()
		b.socket.sent = nil
	}
	if want := (longestQueue + quantumFrames - 1) / quantumFrames; rounds != want {
		t.Errorf("%d rounds, want %d", rounds, want)
	}
}

// TestRoundSaysWhatIsLeft: of either queue, and looks only where there is something.
func TestRoundSaysWhatIsLeft(t *testing.T) {
	for c := range classes {
		b := newBench(t)
		queues := []*fakeQueue{b.queue, b.bulk}
		for range quantumFrames + 1 {
			queues[c].in = append(queues[c].in, tun.Frame{Packet: packetBetween("10.5.1.2", "10.5.2.2")})
		}
		queues[1-c].readErr = errRefused // the queue is lost if it is read
		b.ready.queues[c] = true
		if !b.worker.round() || b.inner == nil {
			t.Errorf("class %d: nothing is left, or the other queue was read", c)
		}
	}
}

// countingQueue counts the bytes that were read from a queue.
type countingQueue struct {
	innerPort
	read *atomic.Int64
}

func (q countingQueue) Read() (tun.Frame, error) {
	f, err := q.innerPort.Read()
	q.read.Add(int64(len(f.Packet)))
	return f, err
}

// countReads has the workers of an engine that does not run yet count what they read from the queues of each class.
func countReads(e *Engine, read *[classes]atomic.Int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.workers {
		for c, q := range w.nextInner.Load().queues {
			counting := countingQueue{q, &read[c]}
			delete(e.open, q)
			e.open[counting] = struct{}{}
			w.nextInner.Load().queues[c] = counting
		}
	}
}

// TestNetnsBulkFlowsHaveAQueueOfTheirOwn sends a TCP stream from one pod to another, then small datagrams, and looks through
// which queues they leave the sender's node.
func TestNetnsBulkFlowsHaveAQueueOfTheirOwn(t *testing.T) {
	var read [classes]atomic.Int64
	ov := startPrepared(t, lab.Options{}, func(node int, e *Engine) {
		if node == 0 {
			countReads(e, &read)
		}
	}, Config{})
	from, to := ov.pod(0), ov.pod(1)
	const size = 64 << 20
	must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), size))
	if n := read[bulk].Load(); n < size*9/10 {
		t.Errorf("%d bytes of a stream of %d left by the queues of bulk flows", n, size)
	}
	before := read[sparse].Load()
	must(t, lab.CheckUDP(t.Context(), from.NS, to.NS, podAddr(1), 1000, 1000, 1000, 1000))
	if n := read[sparse].Load() - before; n < 3*1000 { // the first may leave by any queue
		t.Errorf("%d bytes of four datagrams of 1,000 left by the queues of sparse flows", n)
	}
}
