package dataplane

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/fib"
	"weft/dataplane/poll"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap/offload"
)

// fakeQueue is a TUN queue in memory. It overwrites borrowed frames at the next Read.
type fakeQueue struct {
	in       []tun.Frame // to be read
	readErr  error       // of Read after that
	lent     []byte
	out      []tun.Frame // copies of written frames
	writeErr error
	repeat   bool // Read repeats the first frame and Write only counts: for allocation tests
	writes   int
	fd       int // to poll
}

func (q *fakeQueue) Read() (tun.Frame, error) {
	for i := range q.lent {
		q.lent[i] = 0xdd
	}
	q.lent = q.lent[:0]
	if len(q.in) == 0 {
		return tun.Frame{}, q.readErr
	}
	f := q.in[0]
	if q.repeat {
		return f, nil
	}
	q.in = q.in[1:]
	q.lent = append(q.lent, f.Packet...)
	f.Packet = q.lent
	return f, nil
}

func (q *fakeQueue) Write(f tun.Frame) error {
	q.writes++
	if q.writeErr != nil {
		return q.writeErr
	}
	if !q.repeat {
		q.out = append(q.out, tun.Frame{Header: f.Header, Packet: slices.Clone(f.Packet)})
	}
	return nil
}

func (q *fakeQueue) FD() int      { return q.fd }
func (q *fakeQueue) Close() error { return nil }

// packets returns the written frames, split into packets as the kernel would.
func (q *fakeQueue) packets(t *testing.T) (all [][]byte) {
	t.Helper()
	for _, f := range q.out {
		s, err := offload.Split(f.Header, f.Packet)
		if err != nil {
			t.Fatal(err)
		}
		for n := s.NextLen(); n > 0; n = s.NextLen() {
			b := make([]byte, n)
			s.Next(b)
			all = append(all, b)
		}
	}
	return all
}

// sentTo is one datagram sent by a fakeSocket.
type sentTo struct {
	key  udp.TxKey
	data []byte
}

// fakeSocket is a socket in memory.
type fakeSocket struct {
	reserved []sentTo
	room     int // datagrams that Reserve accepts between two flushes
	full     int // number of flushes that fail because the socket is full
	reject   func(datagram []byte) error
	sendErr  error
	sent     []sentTo
	in       [][]udp.Message // per Receive
	recvErr  error
	lent     []udp.Message
	repeat   bool // Receive repeats the first batch: for allocation tests
	buf      []byte
	fd       int // to poll
}

func newFakeSocket() *fakeSocket { return &fakeSocket{room: 1000, fd: -1} }

func (s *fakeSocket) Reserve(key udp.TxKey, n int) []byte {
	if s.repeat {
		return s.buf[:n]
	}
	if len(s.reserved) >= s.room {
		return nil
	}
	s.reserved = append(s.reserved, sentTo{key, make([]byte, n)})
	return s.reserved[len(s.reserved)-1].data
}

func (s *fakeSocket) Flush(undelivered udp.UndeliveredFunc) bool {
	if len(s.reserved) > 0 && s.full > 0 {
		s.full--
		return false
	}
	for _, d := range s.reserved {
		if s.reject != nil {
			if err := s.reject(d.data); err != nil {
				undelivered(d.key.To, d.data, err)
				continue
			}
		}
		s.sent = append(s.sent, d)
	}
	s.reserved = nil
	return true
}

func (s *fakeSocket) Send(to *udp.Destination, datagram []byte) error {
	if s.sendErr == nil {
		s.sent = append(s.sent, sentTo{udp.TxKey{To: to}, slices.Clone(datagram)})
	}
	return s.sendErr
}

func (s *fakeSocket) Receive() ([]udp.Message, error) {
	if s.repeat && len(s.in) > 0 {
		return s.in[0], nil
	}
	for _, m := range s.lent {
		for i := range m.Data {
			m.Data[i] = 0xdd
		}
	}
	s.lent = nil
	if len(s.in) == 0 {
		return nil, s.recvErr
	}
	s.lent, s.in = s.in[0], s.in[1:]
	return s.lent, nil
}

func (s *fakeSocket) FD() int                    { return s.fd }
func (s *fakeSocket) SendFD() int                { return -1 }
func (s *fakeSocket) Overflows() (uint64, error) { return 0, nil }
func (s *fakeSocket) Close() error               { return nil }

// The overlay of the tests: the local subnet is 10.5.1.0/24, and there are two other nodes.
var (
	selfNode = fib.Node{Name: "self",
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:1::/64")}}
	node2 = fib.Node{Name: "two", Endpoint: netip.MustParseAddrPort("192.0.2.2:8285"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:5:2::/64")}}
	node3 = fib.Node{Name: "three", Endpoint: netip.MustParseAddrPort("192.0.2.3:8285"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.3.0/24")}}
)

// harness is a worker between fakes.
type harness struct {
	*worker
	queue  *fakeQueue // of sparse flows
	bulk   *fakeQueue // of bulk flows
	socket *fakeSocket
	clock  time.Time
	more   bool // result of the last round
}

func newHarness(t testing.TB) *harness { return newHarnessWith(t, Config{}) }

func newHarnessWith(t testing.TB, c Config) *harness {
	t.Helper()
	c.Device, c.Bind, c.Workers = "test0", netip.MustParseAddrPort("192.0.2.1:8285"), 1
	e, err := newEngine(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	e.SetNodes(selfNode, []fib.Node{node2, node3})
	h := &harness{
		worker: e.workers[0],
		queue:  &fakeQueue{fd: -1},
		bulk:   &fakeQueue{fd: -1},
		socket: newFakeSocket(),
		clock:  time.Unix(1_700_000_000, 0),
	}
	h.now = func() time.Time { return h.clock }
	h.nextTUN.Store(&tunPort{
		queues: [numClasses]tunQueue{h.queue, h.bulk},
		limits: offload.Limits{TCP: true, UDP: true},
	})
	h.nextUDP.Store(&udpPort{udpSocket: h.socket})
	h.pickUpReplacements()
	return h
}

// round does one round of run, without waiting.
func (h *harness) round() {
	h.pickUpReplacements()
	h.ready = readiness{queues: [numClasses]bool{true, true}, socket: true}
	h.more = h.worker.round()
}

// fromTUN forwards packets that pods send.
func (h *harness) fromTUN(pkts ...[]byte) {
	for _, p := range pkts {
		h.queue.in = append(h.queue.in, tun.Frame{Packet: p})
	}
	h.round()
}

// fromUDP receives datagrams from another node, each in a message of its own.
func (h *harness) fromUDP(from string, pkts ...[]byte) {
	var batch []udp.Message
	for _, p := range pkts {
		batch = append(batch, message(from, len(p), p))
	}
	h.socket.in = append(h.socket.in, batch)
	h.round()
}

// message returns a train as the kernel delivers it.
func message(from string, segment int, data []byte) udp.Message {
	slot := make([]byte, 65536)
	return udp.Message{
		From:    netip.AddrPortFrom(netip.MustParseAddr(from), 8285),
		Data:    slot[:copy(slot, data)],
		Segment: segment,
	}
}

// drops returns the counters that are not zero.
func (h *harness) drops() map[Drop]uint64 {
	s := h.engine.Stats()
	for d, n := range s.Drops {
		if n == 0 {
			delete(s.Drops, d)
		}
	}
	return s.Drops
}

// readable returns a readable descriptor to poll.
func readable(t *testing.T) []unix.PollFd {
	t.Helper()
	event, err := poll.NewEventFD()
	must(t, err)
	t.Cleanup(func() { must(t, event.Close()) })
	event.Signal()
	return []unix.PollFd{{Fd: int32(event.FD()), Events: unix.POLLIN}}
}

var errRejected error = unix.EPERM
