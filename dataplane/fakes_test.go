package dataplane

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/fib"
	"weft/dataplane/poll"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap/checksum"
	"weft/encap/offload"
)

// fakeQueue is a TUN queue in memory. What it lends is overwritten as soon as the loan ends.
type fakeQueue struct {
	in       []tun.Frame // what Read gives
	readErr  error       // what Read gives behind that
	lent     []byte
	out      []tun.Frame // what was written, copied
	writeErr error
	keep     bool // Read gives the first frame of in for ever, and Write counts only: for allocation tests
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
	if q.keep {
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
	if !q.keep {
		q.out = append(q.out, tun.Frame{Header: f.Header, Packet: slices.Clone(f.Packet)})
	}
	return nil
}

func (q *fakeQueue) FD() int      { return q.fd }
func (q *fakeQueue) Close() error { return nil }

// packets returns what was written as the packets that the kernel would make of it.
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

// sentTo is one datagram that left a fakeSocket.
type sentTo struct {
	key  udp.TxKey
	data []byte
}

// fakeSocket is a socket in memory.
type fakeSocket struct {
	reserved []sentTo
	room     int // datagrams that Reserve takes between two flushes
	full     int // how many flushes are refused for want of room
	refuse   func(datagram []byte) error
	sendErr  error
	sent     []sentTo
	in       [][]udp.Message // what each Receive gives
	recvErr  error
	lent     []udp.Message
	keep     bool // Receive gives the first batch for ever: for allocation tests
	buf      []byte
	fd       int // to poll
}

func newFakeSocket() *fakeSocket { return &fakeSocket{room: 1000, fd: -1} }

func (s *fakeSocket) Reserve(key udp.TxKey, n int) []byte {
	if s.keep {
		return s.buf[:n]
	}
	if len(s.reserved) >= s.room {
		return nil
	}
	s.reserved = append(s.reserved, sentTo{key, make([]byte, n)})
	return s.reserved[len(s.reserved)-1].data
}

func (s *fakeSocket) Flush(failed udp.UndeliveredFunc) bool {
	if len(s.reserved) > 0 && s.full > 0 {
		s.full--
		return false
	}
	for _, d := range s.reserved {
		if s.refuse != nil {
			if err := s.refuse(d.data); err != nil {
				failed(d.key.To, d.data, err)
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
	if s.keep && len(s.in) > 0 {
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

// The overlay of the tests: we are 10.5.1.0/24, and know two nodes.
var (
	selfNode = fib.Node{Name: "self", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:1::/64")}}
	node2    = fib.Node{Name: "two", Endpoint: netip.MustParseAddrPort("192.0.2.2:8285"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:5:2::/64")}}
	node3 = fib.Node{Name: "three", Endpoint: netip.MustParseAddrPort("192.0.2.3:8285"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.3.0/24")}}
)

// bench is a worker between two fakes.
type bench struct {
	*worker
	queue  *fakeQueue // of sparse flows
	bulk   *fakeQueue // of bulk flows
	socket *fakeSocket
	clock  time.Time
	more   bool // what the last round said
}

func newBench(t testing.TB) *bench { return newBenchWith(t, Config{}) }

func newBenchWith(t testing.TB, c Config) *bench {
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
	b := &bench{worker: e.workers[0], queue: &fakeQueue{fd: -1}, bulk: &fakeQueue{fd: -1}, socket: newFakeSocket(), clock: time.Unix(1_700_000_000, 0)}
	b.now = func() time.Time { return b.clock }
	b.nextInner.Store(&inner{queues: [classes]innerPort{b.queue, b.bulk}, limits: offload.Limits{TCP: true, UDP: true}})
	b.nextOuter.Store(&outer{outerPort: b.socket})
	b.adopt()
	return b
}

// round is what run does without waiting.
func (b *bench) round() {
	b.adopt()
	b.ready = ready{queues: [classes]bool{true, true}, outer: true}
	b.more = b.worker.round()
}

// leave has packets come out of the TUN.
func (b *bench) leave(pkts ...[]byte) {
	for _, p := range pkts {
		b.queue.in = append(b.queue.in, tun.Frame{Packet: p})
	}
	b.round()
}

// arrive has datagrams come in as one message each.
func (b *bench) arrive(from string, pkts ...[]byte) {
	var batch []udp.Message
	for _, p := range pkts {
		batch = append(batch, message(from, len(p), p))
	}
	b.socket.in = append(b.socket.in, batch)
	b.round()
}

// message is a train as the kernel delivers it.
func message(from string, segment int, data []byte) udp.Message {
	slot := make([]byte, 65536)
	return udp.Message{
		From:    netip.AddrPortFrom(netip.MustParseAddr(from), 8285),
		Data:    slot[:copy(slot, data)],
		Segment: segment,
	}
}

// drops returns the reasons counted so far.
func (b *bench) drops() map[Drop]uint64 {
	s := b.engine.Stats()
	for d, n := range s.Drops {
		if n == 0 {
			delete(s.Drops, d)
		}
	}
	return s.Drops
}

const dontFragment = 0x4000

// ip4 builds an IPv4 packet.
func ip4(src, dst string, proto uint8, flags uint16, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9] = 63, proto
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^checksum.Sum(b, 0))
	return append(b, payload...)
}

// ip6 builds an IPv6 packet.
func ip6(src, dst string, next uint8, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, 63
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, payload...)
}

// udp4 builds a UDP datagram over IPv4 with n bytes of payload that depend on seed.
func udp4(src, dst string, flags uint16, n int, seed byte) []byte {
	u := make([]byte, 8+n)
	binary.BigEndian.PutUint16(u, 4000)
	binary.BigEndian.PutUint16(u[2:], 5000)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	for i := range u[8:] {
		u[8+i] = seed + byte(i)*7
	}
	b := ip4(src, dst, 17, flags, u)
	binary.BigEndian.PutUint16(b[26:], ^checksum.Sum(b[20:], checksum.Pseudo(b[12:20], 17, len(u))))
	return b
}

// tcp4 builds a TCP segment over IPv4: ACK, no options.
func tcp4(src, dst string, seq uint32, n int) []byte {
	s := make([]byte, 20+n)
	binary.BigEndian.PutUint16(s, 4000)
	binary.BigEndian.PutUint16(s[2:], 5001)
	binary.BigEndian.PutUint32(s[4:], seq)
	s[12], s[13], s[14] = 5<<4, 0x10, 0x20
	for i := range s[20:] {
		s[20+i] = byte(seq) + byte(i)*3
	}
	b := ip4(src, dst, 6, dontFragment, s)
	binary.BigEndian.PutUint16(b[36:], ^checksum.Sum(b[20:], checksum.Pseudo(b[12:20], 6, len(s))))
	return b
}

// superTCP builds the super-frame that the kernel would give for n bytes of one TCP flow.
func superTCP(src, dst string, n, segment int) tun.Frame {
	b := tcp4(src, dst, 1000, n)
	binary.BigEndian.PutUint16(b[36:], checksum.Pseudo(b[12:20], 6, len(b)-20))
	return tun.Frame{Packet: b, Header: offload.Header{
		Flags: offload.NeedsChecksum, GSO: offload.GSOTCPv4, HeaderLen: 40, SegmentSize: uint16(segment),
		ChecksumStart: 20, ChecksumOffset: 16,
	}}
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

var errRefused error = unix.EPERM
