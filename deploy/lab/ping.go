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
	pingSeq                            = 8 // sequence number as 8 bytes, after the ICMP header

	// DefaultPingSize is the IPv4 packet size of the ping program: 84 bytes.
	DefaultPingSize = 84
)

// Ping describes a series of echo requests. The zero value is one request of the default size.
type Ping struct {
	Count    int           // 1 if 0; unlimited if negative
	Interval time.Duration // between requests, 20 ms if 0
	Timeout  time.Duration // for the last replies, 1 s if 0
	Size     int           // of the whole IP packet in bytes, DefaultPingSize if 0
	// DontFragment sets DF and ignores the kernel's cached path MTU, so that every packet is sent.
	DontFragment bool
}

// PingResult counts requests, replies and errors.
type PingResult struct {
	Sent, Received int
	Duplicates     int
	// RTT has one entry per reply, in order of arrival.
	RTT []time.Duration
	// TooBigMTU is the MTU in the last "fragmentation needed" or "packet too big" message,
	// TooBigCount the number of such messages.
	TooBigMTU, TooBigCount int
	// Unreachable counts the other destination unreachable messages; UnreachableFrom is the sender
	// of the last one.
	Unreachable     int
	UnreachableFrom netip.Addr
	// SendErrors counts requests that the kernel rejected; LastError is the last error.
	SendErrors int
	LastError  error
}

// Lost returns the number of requests without a reply.
func (r PingResult) Lost() int { return r.Sent - r.Received }

// RTTMedian returns the median round-trip time, 0 without replies.
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
	done   sync.WaitGroup // sender and receiver
	once   sync.Once      // of Stop
	sent   chan struct{}  // closed when the sender exits

	mu      sync.Mutex
	result  PingResult
	pending map[uint64]time.Time // send times of unanswered requests, by sequence number
	nextSeq uint64
}

// Ping sends echo requests from the namespace and waits for the replies. The error concerns only
// sending; lost replies are in the result.
func (ns *NS) Ping(ctx context.Context, dst netip.Addr, p Ping) (PingResult, error) {
	pinger, err := ns.StartPing(ctx, dst, p)
	if err != nil {
		return PingResult{}, err
	}
	<-pinger.sent
	return pinger.Stop(), nil
}

// StartPing is Ping in the background, until [Pinger.Stop] or the end of ctx.
func (ns *NS) StartPing(ctx context.Context, dst netip.Addr, p Ping) (*Pinger, error) {
	p.Interval = orDefault(p.Interval, 20*time.Millisecond)
	p.Timeout = orDefault(p.Timeout, time.Second)
	p.Size, p.Count = orDefault(p.Size, DefaultPingSize), orDefault(p.Count, 1)
	network := "ip4:icmp"
	if dst.Is6() {
		network = "ip6:ipv6-icmp"
	}
	if minSize := headerLen(dst) + pingSeq; p.Size < minSize {
		return nil, fmt.Errorf("ping %s from %s: size %d bytes: want at least %d",
			dst, ns.Name, p.Size, minSize)
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
		sent: make(chan struct{}), pending: map[uint64]time.Time{}}
	if err := pinger.setOptions(); err != nil {
		return nil, errors.Join(fmt.Errorf("ping %s from %s: %w", dst, ns.Name, err), conn.Close())
	}
	ctx, pinger.cancel = context.WithCancel(ctx)
	pinger.done.Go(func() { pinger.send(ctx) })
	pinger.done.Go(pinger.receive)
	return pinger, nil
}

// Stop ends the series, waits up to the timeout for the last replies and returns the result.
// Further calls return the same result.
func (p *Pinger) Stop() PingResult {
	p.once.Do(p.stop)
	return p.Result()
}

func (p *Pinger) stop() {
	p.cancel()
	<-p.sent
	deadline := time.Now().Add(p.ping.Timeout)
	// The reader exits at the deadline or at the last reply.
	err := p.conn.SetReadDeadline(deadline)
	p.mu.Lock()
	waiting := len(p.pending) > 0
	p.mu.Unlock()
	if err != nil || !waiting {
		err = errors.Join(err, p.conn.SetReadDeadline(time.Now()))
	}
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err = errors.Join(err, p.conn.Close()); err != nil {
		p.result.LastError = err
	}
}

// Result returns the result so far.
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
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		if p.dst.Is4() {
			sockErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER,
				unix.IP_PMTUDISC_PROBE)
		} else {
			sockErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER,
				unix.IPV6_PMTUDISC_PROBE)
		}
	})
	return errors.Join(err, sockErr)
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
	seq := p.nextSeq
	p.nextSeq++
	p.pending[seq] = time.Now()
	p.mu.Unlock()
	_, err := p.conn.WriteTo(p.request(seq), &net.IPAddr{IP: p.dst.AsSlice()})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		delete(p.pending, seq)
		p.result.SendErrors++
		p.result.LastError = err
		return
	}
	p.result.Sent++
}

// request builds an echo request. The kernel adds the IP header and, for IPv6, the checksum.
func (p *Pinger) request(seq uint64) []byte {
	b := make([]byte, p.ping.Size-headerLen(p.dst)+icmpHeader)
	b[0] = icmpEcho
	if p.dst.Is6() {
		b[0] = icmp6Echo
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	binary.BigEndian.PutUint64(b[icmpHeader:], seq)
	for i := icmpHeader + pingSeq; i < len(b); i++ {
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
			return // the deadline set by Stop
		}
		p.handle(buffer[:n], from)
		select {
		case <-p.sent:
			p.mu.Lock()
			all := len(p.pending) == 0
			p.mu.Unlock()
			if all {
				return
			}
		default:
		}
	}
}

// temporary reports whether a read returned an ICMP error queued on the socket.
func temporary(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !errors.Is(err, net.ErrClosed)
}

// handle processes one ICMP message. The socket receives all ICMP traffic of the namespace.
func (p *Pinger) handle(b []byte, from *net.IPAddr) {
	if len(b) < icmpHeader {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	v4, kind := p.dst.Is4(), b[0]
	switch {
	case v4 && kind == icmpEchoReply, !v4 && kind == icmp6EchoReply:
		if binary.BigEndian.Uint16(b[4:]) == p.id && len(b) >= icmpHeader+pingSeq &&
			len(b) == p.ping.Size-headerLen(p.dst)+icmpHeader {
			p.record(binary.BigEndian.Uint64(b[icmpHeader:]), now)
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

// record notes the reply to a request.
func (p *Pinger) record(seq uint64, now time.Time) {
	sent, ok := p.pending[seq]
	if !ok {
		p.result.Duplicates++
		return
	}
	delete(p.pending, seq)
	p.result.Received++
	p.result.RTT = append(p.result.RTT, now.Sub(sent))
}

// quotes reports whether the packet quoted in an ICMP error is a request of p.
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
	return slices.Equal(b[dst:dst+len(p.dst.AsSlice())], p.dst.AsSlice()) &&
		binary.BigEndian.Uint16(b[header+4:]) == p.id
}

// headerLen returns the length of the IP and ICMP headers in a's family.
func headerLen(a netip.Addr) int {
	if a.Is4() {
		return ipv4Header + icmpHeader
	}
	return ipv6Header + icmpHeader
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
