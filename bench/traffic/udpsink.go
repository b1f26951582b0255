package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpReceiver counts the packets of one socket.
type udpReceiver struct {
	fd   int
	next []uint64 // highest sequence number seen plus one, by flow

	mu          sync.Mutex
	received    uint64
	arrived     uint64
	reordered   uint64
	first, last time.Time
	err         error
}

// run receives until the socket is shut down.
func (r *udpReceiver) run() {
	b := newBatch(udpBatch, udpHeaderBytes) // the rest of the payload is truncated
	for {
		n, err := b.receive(r.fd)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		// A socket that was shut down receives empty messages.
		if err != nil || b.messages[0].length == 0 {
			r.mu.Lock()
			r.err = err
			r.mu.Unlock()
			return
		}
		r.count(b, n)
	}
}

// count counts the first n messages of a batch.
func (r *udpReceiver) count(b *batch, n int) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range n {
		p := b.payloads[i]
		flow, number := binary.BigEndian.Uint32(p[flowOffset:]), binary.BigEndian.Uint64(p[numberOffset:])
		if b.messages[i].length < udpHeaderBytes || int(flow) >= len(r.next) {
			continue // not from a generator
		}
		if number < r.next[flow] {
			r.reordered++
		} else {
			r.next[flow] = number + 1
		}
		r.arrived++
		if p[0] != 1 {
			continue
		}
		if r.received == 0 {
			r.first = now
		}
		r.last = now
		r.received++
	}
}

func (r *udpReceiver) result() UDPResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	return UDPResult{Received: r.received, Arrived: r.arrived, Reordered: r.reordered}
}

// udpSinks is the receivers of one load.
type udpSinks struct {
	at        []netip.AddrPort
	receivers []*udpReceiver
	running   sync.WaitGroup
}

// add opens a socket at an end.
func (s *udpSinks) add(end End, flows int) error {
	fd, at, err := end.bind(unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	s.at = append(s.at, at)
	s.receivers = append(s.receivers, &udpReceiver{fd: fd, next: make([]uint64, flows)})
	return RaiseBuffers(fd)
}

func (s *udpSinks) start() {
	for _, r := range s.receivers {
		s.running.Go(r.run)
	}
}

func (s *udpSinks) received() (n uint64) {
	for _, r := range s.receivers {
		n += r.result().Received
	}
	return n
}

// awaitIdle returns when all packets have arrived, or none has for idleAfter.
func (s *udpSinks) awaitIdle(sent uint64) {
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	for before := uint64(0); ; {
		now := s.received()
		if now >= sent {
			return
		}
		<-tick.C
		if after := s.received(); after == now && now == before {
			return
		}
		before = now
	}
}

// stop stops the receivers and adds up their counts. The rate is over the time of sending at least:
// a receiver that is scheduled late finds all packets in its buffer, but they cannot arrive faster
// than they were sent.
func (s *udpSinks) stop(sending time.Duration) (sum UDPResult, err error) {
	var first, last time.Time
	for _, r := range s.receivers {
		shutdown(r.fd)
	}
	s.running.Wait()
	for _, r := range s.receivers {
		one := r.result()
		sum.Received += one.Received
		sum.Arrived += one.Arrived
		sum.Reordered += one.Reordered
		drops, derr := socketDrops(r.fd)
		sum.Overflowed += drops
		err = errors.Join(err, r.err, derr)
		if !r.first.IsZero() && (first.IsZero() || r.first.Before(first)) {
			first = r.first
		}
		if r.last.After(last) {
			last = r.last
		}
	}
	if d := max(sending, last.Sub(first)).Seconds(); d > 0 {
		sum.ReceivedRate = float64(sum.Received) / d
	}
	return sum, err
}

func (s *udpSinks) close() {
	for _, r := range s.receivers {
		_ = unix.Close(r.fd) // only read from
	}
}

// skMeminfoDrops is SK_MEMINFO_DROPS of linux/sock_diag.h, an index into the array that SO_MEMINFO
// returns.
const skMeminfoDrops = 8

// socketDrops returns the number of packets that a socket dropped because its buffer was full.
func socketDrops(fd int) (uint64, error) {
	var info [skMeminfoDrops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("read socket drops: %w", errno)
	}
	return uint64(info[skMeminfoDrops]), nil
}
