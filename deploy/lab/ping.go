package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ICMP types and codes (RFC 792, RFC 4443) and sizes in bytes.
const (
	icmpEchoReply, icmpEcho, icmpUnreachable = 0, 8, 3
	icmpCodeTooBig                           = 4
	icmp6EchoReply, icmp6Echo                = 129, 128
	icmp6Unreachable, icmp6TooBig            = 1, 2

	ipv4Header, ipv6Header, icmpHeader = 20, 40, 8
	pingStamp                          = 8 // number of the probe, after the ICMP header

	// DefaultPingSize is a packet like that of the ping program: 84 bytes with IPv4.
	DefaultPingSize = 84
)

// Ping describes a series of echo requests. The zero value is one of the usual size.
type Ping struct {
	Count    int           // 1 if 0; negative: until the context ends
	Interval time.Duration // between requests, 20 ms if 0
	Timeout  time.Duration // for the last answers, 1 s if 0
	Size     int           // of the whole IP packet in bytes, DefaultPingSize if 0
	// DontFragment sets DF and ignores what the kernel knows of the path's MTU, so that every packet really leaves.
	DontFragment bool
}

// PingResult is what came of it.
type PingResult struct {
	Sent, Received int
	Duplicates     int
	// RTT has one entry for each answer, in the order of their arrival.
	RTT []time.Duration
	// TooBig is the MTU that the last "fragmentation needed" or "packet too big" named, TooBigCount how many came.
	TooBigMTU, TooBigCount int
	// Unreachable counts the other destination unreachable messages, UnreachableFrom sent the last of them.
	Unreachable     int
	UnreachableFrom netip.Addr
	// Refused counts requests that the sending kernel did not take, LastError says why.
	SendErrors int
	LastError  error
}

// Lost counts the requests without an answer.
func (r PingResult) Lost() int { return r.Sent - r.Received }

// RTTMedian is the middle of the round trip times, 0 if there are none.
func (r PingResult) RTTMedian() time.Duration {
	if len(r.RTT) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(r.RTT))
	return sorted[len(sorted)/2]
}

// Pinger is a running series of echo requests.
type Pinger struct {
	conn   *net.IPConn
	dst    netip.Addr
	ping   Ping
	id     uint16
	cancel context.CancelFunc
	ended  sync.WaitGroup // the sender and the receiver
	once   sync.Once      // of Stop
	sent   chan struct{}  // closed when the sender has ended

	mu     sync.Mutex
	result PingResult
	open   map[uint64]time.Time // requests without an answer, by number
	known  uint64               // numbers given so far
}

// Ping sends echo requests from the namespace and waits for their answers. The error is about the sending side only:
// what does not come back is in the result.
func (ns *NS) Ping(ctx context.Context, dst netip.Addr, p Ping) (PingResult, error) {
	pinger, err := ns.StartPing(ctx, dst, p)
	if err != nil {
		return PingResult{}, err
	}
	<-pinger.sent
	return pinger.Stop(), nil
}

// StartPing is Ping in the background, until [Pinger.Stop].
func (ns *NS) StartPing(ctx context.Context, dst netip.Addr, p Ping) (*Pinger, error) {
	p.Interval, p.Timeout = orDefault(p.Interval, 20*time.Millisecond), orDefault(p.Timeout, time.Second)
	p.Size, p.Count = orDefault(p.Size, DefaultPingSize), orDefault(p.Count, 1)
	network := "ip4:icmp"
	if dst.Is6() {
		network = "ip6:ipv6-icmp"
	}
	if least := headers(dst) + pingStamp; p.Size < least {
		return nil, fmt.Errorf("ping %s from %s: %d bytes: want %d or more", dst, ns.Name, p.Size, least)
	}
	var conn net.PacketConn
	err := ns.Do(func() (err error) {
		conn, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", dst, err)
	}
	pinger := &Pinger{conn: conn.(*net.IPConn), dst: dst, ping: p, id: uint16(rand.Uint32()),
		sent: make(chan struct{}), open: map[uint64]time.Time{}}
	if err := pinger.setOptions(); err != nil {
		return nil, errors.Join(fmt.Errorf("ping %s from %s: %w", dst, ns.Name, err), conn.Close())
	}
	ctx, pinger.cancel = context.WithCancel(ctx)
	pinger.ended.Go(func() { pinger.send(ctx) })
	pinger.ended.Go(pinger.receive)
	return pinger, nil
}

// Stop ends the series, waits up to its timeout for the last answers and returns the result. Stopping again returns the
// same.
func (p *Pinger) Stop() PingResult {
	p.once.Do(p.stop)
	return p.Result()
}

func (p *Pinger) stop() {
	p.cancel()
	<-p.sent
	deadline := time.Now().Add(p.ping.Timeout)
	// The reader ends at the deadline, or at the answer to the last request.
	err := p.conn.SetReadDeadline(deadline)
	p.mu.Lock()
	waiting := len(p.open) > 0
	p.mu.Unlock()
	if err != nil || !waiting {
		err = errors.Join(err, p.conn.SetReadDeadline(time.Now()))
	}
	p.ended.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err = errors.Join(err, p.conn.Close()); err != nil {
		p.result.LastError = err
	}
}

// Result is what has come so far.
func (p *Pinger) Result() PingResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.result
	r.RTT = slices.Clone(r.RTT)
	return r
}

func (p *Pinger) setOptions() error {
	if !p.ping.DontFragment {
		return nil
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		if p.dst.Is4() {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	})
	return errors.Join(err, serr)
}

func (p *Pinger) send(ctx context.Context) {
	defer close(p.sent)
	tick := time.NewTicker(p.ping.Interval)
	defer tick.Stop()
	for i := 0; p.ping.Count < 0 || i < p.ping.Count; i++ {
		if i > 0 {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		if ctx.Err() != nil {
			return
		}
		p.sendOne()
	}
}

func (p *Pinger) sendOne() {
	p.mu.Lock()
	number := p.known
	p.known++
	p.open[number] = time.Now()
	p.mu.Unlock()
	_, err := p.conn.WriteTo(p.request(number), &net.IPAddr{IP: p.dst.AsSlice()})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		delete(p.open, number)
		p.result.SendErrors++
		p.result.LastError = err
		return
	}
	p.result.Sent++
}

// request builds an echo request; the kernel adds the IP header, and with IPv6 the checksum.
func (p *Pinger) request(number uint64) []byte {
	b := make([]byte, p.ping.Size-headers(p.dst)+icmpHeader)
	b[0] = icmpEcho
	if p.dst.Is6() {
		b[0] = icmp6Echo
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], uint16(number))
	binary.BigEndian.PutUint64(b[icmpHeader:], number)
	for i := icmpHeader + pingStamp; i < len(b); i++ {
		b[i] = byte(i)
	}
	if p.dst.Is4() {
		var sum uint32
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	}
	return b
}

func (p *Pinger) receive() {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := p.conn.ReadFromIP(buffer)
		if err != nil {
			if temporary(err) {
				continue
			}
			return // the deadline that Stop has set
		}
		p.take(buffer[:n], from)
		select {
		case <-p.sent:
			p.mu.Lock()
			all := len(p.open) == 0
			p.mu.Unlock()
			if all {
				return
			}
		default:
		}
	}
}

// temporary says whether a read failed because of an ICMP error that is queued on the socket.
func temporary(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !errors.Is(err, net.ErrClosed)
}

// take looks at one ICMP message; the namespace's whole ICMP traffic comes by here.
func (p *Pinger) take(b []byte, from *net.IPAddr) {
	if len(b) < icmpHeader {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	v4, kind := p.dst.Is4(), b[0]
	switch {
	case v4 && kind == icmpEchoReply, !v4 && kind == icmp6EchoReply:
		if binary.BigEndian.Uint16(b[4:]) == p.id && len(b) >= icmpHeader+pingStamp && len(b) == p.ping.Size-headers(p.dst)+icmpHeader {
			p.answer(binary.BigEndian.Uint64(b[icmpHeader:]), now)
		}
	case v4 && kind == icmpUnreachable && b[1] == icmpCodeTooBig, !v4 && kind == icmp6TooBig:
		if p.quotes(b[icmpHeader:]) {
			p.result.TooBigCount++
			p.result.TooBigMTU = int(binary.BigEndian.Uint32(b[4:]) & 0xffff)
		}
	case v4 && kind == icmpUnreachable, !v4 && kind == icmp6Unreachable:
		if p.quotes(b[icmpHeader:]) {
			p.result.Unreachable++
			address, _ := netip.AddrFromSlice(from.IP)
			p.result.UnreachableFrom = address.Unmap()
		}
	}
}

func (p *Pinger) answer(number uint64, now time.Time) {
	sent, ok := p.open[number]
	if !ok {
		p.result.Duplicates++
		return
	}
	delete(p.open, number)
	p.result.Received++
	p.result.RTT = append(p.result.RTT, now.Sub(sent))
}

// quotes says whether an ICMP error is about one of our requests.
func (p *Pinger) quotes(b []byte) bool {
	header, dst := ipv6Header, 24
	if p.dst.Is4() {
		if len(b) < ipv4Header {
			return false
		}
		header, dst = int(b[0]&0xf)*4, 16
	}
	if len(b) < header+icmpHeader {
		return false
	}
	return slices.Equal(b[dst:dst+len(p.dst.AsSlice())], p.dst.AsSlice()) && binary.BigEndian.Uint16(b[header+4:]) == p.id
}

// headers is the size of the headers of an echo packet in a's family.
func headers(a netip.Addr) int {
	if a.Is4() {
		return ipv4Header + icmpHeader
	}
	return ipv6Header + icmpHeader
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
