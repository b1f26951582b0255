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
	Size  int // bytes of payload, at least 16
	Flows int // with different source addresses or ports, at most maxFlows
	Run   int // packets of one flow sent before the next flow; 0 means 1
	// Rate is the offered packets per second; 0 means as many as possible (a flood).
	Rate     float64
	Duration time.Duration
}

// UDPResult is the result of a load.
type UDPResult struct {
	Sent, Received uint64
	Arrived        uint64  // received, including the warm-up
	SentRate       float64 // packets per second
	ReceivedRate   float64 // packets per second
	Reordered      uint64  // packets that arrived after a later one of their flow
	// Overflowed counts packets dropped at the full receiving socket, by the receiver and not by
	// the network. It includes the warm-up.
	Overflowed uint64
}

// Loss returns the ratio of lost packets, from 0 to 1.
func (r UDPResult) Loss() float64 {
	if r.Sent == 0 || r.Received >= r.Sent {
		return 0
	}
	return 1 - float64(r.Received)/float64(r.Sent)
}

const (
	// Flows differ in the source address, of which a pod adds a quarter of its /24, and then in the
	// socket.
	sourcesPerSocket = 64
	maxFlows         = 16 * sourcesPerSocket

	// The payload starts with a byte that is 1 after the warm-up, the flow, and the sequence number
	// in the flow.
	flowOffset, numberOffset, udpHeaderBytes = 4, 8, 16

	// warmUp fills neighbour tables and caches, and wakes the CPUs.
	warmUp = 100 * time.Millisecond
	// idleAfter is the time without arrivals after which missing packets count as lost. No queue
	// here holds packets longer.
	idleAfter = 150 * time.Millisecond

	// minPause is the shortest sleep between two bursts: shorter ones use CPU time that is being
	// measured.
	minPause = 50 * time.Microsecond
)

// UDP offers the load for a short warm-up and then for its duration, and counts the packets of the
// latter.
func UDP(ctx context.Context, from, to End, load UDPLoad) (UDPResult, error) {
	r, err := runUDP(ctx, from, []End{to}, load)
	if err != nil {
		return r, fmt.Errorf("UDP from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return r, nil
}

// Fan is like [UDP], but sends to many ends in turn, one flow to each.
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
		return result, fmt.Errorf("%d bytes on %d flows: want at least %d bytes on 1 to %d flows",
			load.Size, load.Flows, udpHeaderBytes, maxFlows)
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
	sinks.awaitIdle(sender.sent)
	result, serr := sinks.stop(sender.elapsed)
	result.Sent, result.SentRate = sender.sent, float64(sender.sent)/sender.elapsed.Seconds()
	return result, errors.Join(err, serr)
}

// udpSender offers a load. Each of its sockets has its own batch of messages, of several flows in
// turn.
type udpSender struct {
	load        UDPLoad
	sockets     []int
	batches     []*batch
	numbers     []uint64 // next sequence number, by flow
	nextSocket  int
	nextMessage []int // by socket

	sent    uint64
	elapsed time.Duration
}

func newUDPSender(from End, to []netip.AddrPort, load UDPLoad) (*udpSender, error) {
	s := &udpSender{load: load, numbers: make([]uint64, load.Flows)}
	if len(to) > 1 {
		return s, s.addFan(from, to)
	}
	sources, err := addSources(from, load.Flows)
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
	s.nextMessage = make([]int, len(s.sockets))
	return s, nil
}

func (s *udpSender) addSocket(from End, to netip.AddrPort, first, flows int,
	sources []netip.Addr) error {
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

// addFan opens one socket that sends to every address in turn.
func (s *udpSender) addFan(from End, to []netip.AddrPort) error {
	fd, err := from.socket(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	s.sockets, s.nextMessage = append(s.sockets, fd), []int{0}
	if err := RaiseBuffers(fd); err != nil {
		return err
	}
	b := s.addBatch(0, len(to))
	for i := range b.messages {
		b.setDestination(i, to[s.flowOf(i, len(to))])
	}
	return nil
}

// flowOf returns the index of the flow of a socket's i-th message.
func (s *udpSender) flowOf(i, flows int) int { return i / max(s.load.Run, 1) % flows }

// addBatch adds the messages of a socket for the flows from first on. It holds whole turns of all
// flows, so that a burst continues where the last one ended, and at least udpBatch messages.
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

// firstSource is the last byte of the first added address: above the few pods of a node, below the
// broadcast address.
const firstSource = 128

// addSources makes a part of the pod's /24 local to it and returns the addresses; for one flow it
// returns nil.
func addSources(from End, flows int) ([]netip.Addr, error) {
	if flows == 1 {
		return nil, nil
	}
	if !from.Addr.Is4() {
		return nil, errors.New("several flows need IPv4 addresses")
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

// run sends the warm-up and then the load, on a thread with a timer slack of 1 ns so that its
// sleeps are exact.
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

// phase sends at the load's rate for d. Only packets of a counted phase are in the result.
func (s *udpSender) phase(ctx context.Context, d time.Duration, counted bool) error {
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
				pause(max(minPause, time.Duration(float64(time.Second)/s.load.Rate)))
				continue
			}
			n = min(n, due)
		}
		done, err := s.burst(n, counted)
		if err != nil {
			return err
		}
		sent += done
		if counted {
			s.sent += uint64(done)
		}
	}
}

// burst sends up to n packets on the next socket.
func (s *udpSender) burst(n int, counted bool) (int, error) {
	b, fd := s.batches[s.nextSocket], s.sockets[s.nextSocket]
	first := s.nextMessage[s.nextSocket]
	n = min(n, len(b.messages)-first)
	for _, p := range b.payloads[first : first+n] {
		flow := binary.BigEndian.Uint32(p[flowOffset:])
		binary.BigEndian.PutUint64(p[numberOffset:], s.numbers[flow])
		s.numbers[flow]++
		p[0] = 0
		if counted {
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
		// A signal, a full queue of a device, an ICMP error for an earlier packet.
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS), errors.Is(err,
			unix.ECONNREFUSED):
		default:
			return done, fmt.Errorf("send: %w", err)
		}
	}
	s.nextMessage[s.nextSocket] = (first + n) % len(b.messages)
	s.nextSocket = (s.nextSocket + 1) % len(s.sockets)
	return done, nil
}

// pause sleeps for d, more exactly than time.Sleep, which rounds to a millisecond in an idle
// process.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	// An interrupted sleep does no harm: the pace is computed from the clock.
	_ = unix.Nanosleep(&ts, nil)
}
