package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// UDPLoad is a stream of datagrams from one end to the other.
type UDPLoad struct {
	Size  int // of the payload, in bytes: 16 or more
	Flows int // with different source addresses or ports; at most maxFlows
	Run   int // packets of one flow in a row, before the next flow's turn; 0 is 1
	// Rate is the packets per second to offer; 0 offers what the sender can.
	Rate     float64
	Duration time.Duration
}

// UDPResult is what became of a load.
type UDPResult struct {
	Sent, Received uint64
	Arrived        uint64  // with the warm-up
	SentRate       float64 // packets per second
	ReceivedRate   float64 // packets per second
	Reordered      uint64  // packets that came after a later one of their flow
	// Overflowed counts packets that reached the receiving socket and found it full: the receiver's
	// fault, not the network's. It includes the warm-up.
	Overflowed uint64
}

// Loss is the part of the packets that did not arrive, 0 to 1.
func (r UDPResult) Loss() float64 {
	if r.Sent == 0 || r.Received >= r.Sent {
		return 0
	}
	return 1 - float64(r.Received)/float64(r.Sent)
}

const (
	// Flows differ in the source address, of which a pod lends itself a quarter of its /24, and
	// then in the socket.
	sourcesPerSocket = 64
	maxFlows         = 16 * sourcesPerSocket

	// What a payload starts with: whether it counts (after the warm-up), its flow, its number in
	// the flow.
	flowOffset, numberOffset, udpHeaderBytes = 4, 8, 16

	// warmUp teaches neighbour tables and caches the way, and wakes the CPUs.
	warmUp = 100 * time.Millisecond
	// quietAfter is how long nothing must arrive before the rest counts as lost: longer than any
	// queue here holds.
	quietAfter = 150 * time.Millisecond

	// paceStep is the shortest sleep between two bursts: shorter ones cost the CPU time that is to
	// be measured.
	paceStep = 50 * time.Microsecond
)

// UDP offers the load for a short warm-up and then for its duration, and counts what arrives of the
// latter.
func UDP(ctx context.Context, from, to End, load UDPLoad) (UDPResult, error) {
	r, err := runUDP(ctx, from, []End{to}, load)
	if err != nil {
		return r, fmt.Errorf("UDP from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return r, nil
}

// Fan is UDP to many ends in turn, one flow to each.
func Fan(ctx context.Context, from End, to []End, load UDPLoad) (UDPResult, error) {
	load.Flows = len(to)
	r, err := runUDP(ctx, from, to, load)
	if err != nil {
		return r, fmt.Errorf("UDP from %s to %d others: %w", from.NS.Name, len(to), err)
	}
	return r, nil
}

func runUDP(ctx context.Context, from End, to []End, load UDPLoad) (result UDPResult, err error) {
	if load.Size < udpHeaderBytes || load.Flows < 1 || load.Flows > maxFlows {
		return result, fmt.Errorf("%d bytes on %d flows: want %d bytes or more on 1 to %d flows", load.Size, load.Flows, udpHeaderBytes, maxFlows)
	}
	sinks := &udpSinks{}
	defer sinks.close()
	for _, end := range to {
		if err := sinks.add(end, load.Flows); err != nil {
			return result, err
		}
	}
	sender, err := newUDPSender(from, sinks.at, load)
	if err != nil {
		return result, err
	}
	defer closeAll(sender.sockets)
	sinks.start()
	err = sender.run(ctx)
	sinks.awaitQuiet(sender.sent)
	result, serr := sinks.stop(sender.elapsed)
	result.Sent, result.SentRate = sender.sent, float64(sender.sent)/sender.elapsed.Seconds()
	return result, errors.Join(err, serr)
}

// udpSender offers a load. Each of its sockets has its own messages, one after the other of
// different flows.
type udpSender struct {
	load    UDPLoad
	sockets []int
	batches []*batch
	numbers []uint64 // of the next packet, by flow
	turn    int      // socket whose turn it is
	offset  []int    // next message of each socket's batch

	sent    uint64
	elapsed time.Duration
}

func newUDPSender(from End, to []netip.AddrPort, load UDPLoad) (*udpSender, error) {
	s := &udpSender{load: load, numbers: make([]uint64, load.Flows)}
	if len(to) > 1 {
		return s, s.addFan(from, to)
	}
	sources, err := lendSources(from, load.Flows)
	if err != nil {
		return nil, err
	}
	for first := 0; first < load.Flows; first += sourcesPerSocket {
		flows := min(sourcesPerSocket, load.Flows-first)
		if err := s.addSocket(from, to[0], first, flows, sources); err != nil {
			closeAll(s.sockets)
			return nil, err
		}
	}
	s.offset = make([]int, len(s.sockets))
	return s, nil
}

func (s *udpSender) addSocket(from End, to netip.AddrPort, first, flows int, sources []netip.Addr) error {
	fd, err := from.socket(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	s.sockets = append(s.sockets, fd)
	if err := RaiseBuffers(fd); err != nil {
		return err
	}
	if err := unix.Connect(fd, Sockaddr(to)); err != nil {
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	b := s.addBatch(first, flows)
	for i := range b.messages {
		if sources != nil {
			b.setSource(i, sources[s.flowOf(i, flows)].As4())
		}
	}
	return nil
}

// addFan opens a socket that sends to every address in turn.
func (s *udpSender) addFan(from End, to []netip.AddrPort) error {
	fd, err := from.socket(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	s.sockets, s.offset = append(s.sockets, fd), []int{0}
	if err := RaiseBuffers(fd); err != nil {
		return err
	}
	b := s.addBatch(0, len(to))
	for i := range b.messages {
		b.setDestination(i, to[s.flowOf(i, len(to))])
	}
	return nil
}

// flowOf returns which of a socket's flows its i-th message is of.
func (s *udpSender) flowOf(i, flows int) int { return i / max(s.load.Run, 1) % flows }

// addBatch makes the messages of a socket for flows from first on: a run of each, so that every
// burst takes up where the last one ended, and more turns until a burst can be whole.
func (s *udpSender) addBatch(first, flows int) *batch {
	turn := flows * max(s.load.Run, 1)
	n := turn
	for n < udpBatch {
		n += turn
	}
	b := newBatch(n, s.load.Size)
	for i := range n {
		binary.BigEndian.PutUint32(b.payloads[i][flowOffset:], uint32(first+s.flowOf(i, flows)))
	}
	s.batches = append(s.batches, b)
	return b
}

// firstSource is the last byte of the first lent address: past the few pods of a node, short of the
// broadcast address.
const firstSource = 128

// lendSources makes addresses of the pod's /24 local to it, if more than one flow is wanted.
func lendSources(from End, flows int) ([]netip.Addr, error) {
	if flows == 1 {
		return nil, nil
	}
	if !from.Addr.Is4() {
		return nil, errors.New("several flows need IPv4 ends")
	}
	base := from.Addr.As4()
	base[3] = firstSource
	if err := from.NS.AddLocalRoute(netip.PrefixFrom(netip.AddrFrom4(base), 26)); err != nil {
		return nil, err
	}
	sources := make([]netip.Addr, sourcesPerSocket)
	for i := range sources {
		base[3] = byte(firstSource + i)
		sources[i] = netip.AddrFrom4(base)
	}
	return sources, nil
}

// run sends the warm-up and then the load, on a thread whose sleeps are as short as asked for.
func (s *udpSender) run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	if err := s.phase(ctx, warmUp, false); err != nil {
		return err
	}
	start := time.Now()
	err := s.phase(ctx, s.load.Duration, true)
	s.elapsed = time.Since(start)
	return err
}

// phase sends at the load's rate for d. Only packets of the counted phase are in the result.
func (s *udpSender) phase(ctx context.Context, d time.Duration, counts bool) error {
	start, sent := time.Now(), 0
	for {
		elapsed := time.Since(start)
		if elapsed >= d || ctx.Err() != nil {
			return ctx.Err()
		}
		n := udpBatch
		if s.load.Rate > 0 {
			due := int(s.load.Rate*elapsed.Seconds()) + 1 - sent
			if due < 1 {
				pause(max(paceStep, time.Duration(float64(time.Second)/s.load.Rate)))
				continue
			}
			n = min(n, due)
		}
		done, err := s.burst(n, counts)
		if err != nil {
			return err
		}
		sent += done
		if counts {
			s.sent += uint64(done)
		}
	}
}

// burst sends up to n packets on the next socket.
func (s *udpSender) burst(n int, counts bool) (int, error) {
	b, fd := s.batches[s.turn], s.sockets[s.turn]
	first := s.offset[s.turn]
	n = min(n, len(b.messages)-first)
	for _, p := range b.payloads[first : first+n] {
		flow := binary.BigEndian.Uint32(p[flowOffset:])
		binary.BigEndian.PutUint64(p[numberOffset:], s.numbers[flow])
		s.numbers[flow]++
		p[0] = 0
		if counts {
			p[0] = 1
		}
	}
	rest := batch{messages: b.messages[first:]}
	done := 0
	for done < n {
		k, err := rest.send(fd, n-done)
		switch {
		case err == nil:
			done += k
			rest.messages = rest.messages[k:]
		// A full queue somewhere below; an ICMP error about an earlier packet.
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ECONNREFUSED):
		default:
			return done, fmt.Errorf("send: %w", err)
		}
	}
	s.offset[s.turn] = (first + n) % len(b.messages)
	s.turn = (s.turn + 1) % len(s.sockets)
	return done, nil
}

// pause sleeps more exactly than time.Sleep, which rounds to a millisecond when the process is
// idle.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	// Interrupted early is early; the pace is computed from the clock.
	_ = unix.Nanosleep(&ts, nil)
}
