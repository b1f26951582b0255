package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
)

// abilities are what probe found out.
type abilities struct {
	lacks    map[feature.Name]error
	segments int // most datagrams of a train
}

// probe finds out which features work. Asking the kernel is not enough: some accept trains and then send garbage
// (Linux 7.0 to 7.1.4 with some drivers), so trains are sent to the node itself and compared byte by byte. A path
// that fails later falls back for itself: see sender.
func probe(c Config) abilities {
	can := abilities{lacks: make(map[feature.Name]error), segments: maxSegments}
	if c.NoGSO {
		can.lacks[feature.GSO] = feature.ErrDisabled
	}
	if c.NoGRO {
		can.lacks[feature.GRO] = feature.ErrDisabled
	}
	t, err := newSelfTest(c.Bind.Addr())
	if err != nil {
		return can // opening the group fails for the same reason, and says so
	}
	defer t.close()
	if can.lacks[feature.GSO] == nil {
		can.lacks[feature.GSO] = t.tryGSO()
	}
	if can.lacks[feature.GRO] == nil {
		can.lacks[feature.GRO] = t.tryGRO(can.lacks[feature.GSO] == nil)
	}
	if can.lacks[feature.GSO] == nil && t.exchange(shape{moreSegments, 100, 100}) == nil {
		can.segments = moreSegments
	}
	return can
}

// selfTest sends trains from one socket to another of the same address.
type selfTest struct {
	from, to int
	at       *Destination // to's address
	trains   trains
	sender   sender
	receiver receiver
	mute     bool // not even a lone datagram arrives here (no loopback, a firewall): nothing can be told
}

func newSelfTest(addr netip.Addr) (*selfTest, error) {
	c := Config{Bind: netip.AddrPortFrom(addr, 0)}
	from, err := c.open(c.Bind)
	if err != nil {
		return nil, err
	}
	to, err := c.open(c.Bind)
	if err != nil {
		return nil, errors.Join(err, unix.Close(from))
	}
	t := &selfTest{from: from, to: to, trains: newTrains(1, moreSegments)}
	t.sender = newSender(from, !addr.Is4(), true)
	t.receiver = newReceiver(to)
	name, err := unix.Getsockname(to)
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.at = NewDestination(addrPortOf(name))
	t.mute = t.exchange(shape{1, 100, 100}) != nil
	return t, nil
}

func (t *selfTest) close() error { return errors.Join(unix.Close(t.from), unix.Close(t.to)) }

// tryGSO has the kernel cut trains: all datagrams equal, which is what the broken kernels get wrong, and the last
// one shorter.
func (t *selfTest) tryGSO() error {
	// 0 changes nothing: it only asks whether the kernel knows the option (Linux 4.18).
	if err := unix.SetsockoptInt(t.from, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0); err != nil {
		return fmt.Errorf("set UDP_SEGMENT: %w", err)
	}
	for _, s := range []shape{{20, 1200, 1200}, {20, 1200, 300}, {2, 21, 20}} {
		if err := t.exchange(s); err != nil && !t.mute {
			return fmt.Errorf("self-test: a train of %d datagrams: %w", s.count, err)
		}
	}
	return nil
}

// tryGRO switches GRO on at the receiving end and, if trains can be sent, looks at how they arrive.
func (t *selfTest) tryGRO(gso bool) error {
	if err := unix.SetsockoptInt(t.to, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil { // Linux 5.0
		return fmt.Errorf("set UDP_GRO: %w", err)
	}
	if !gso || t.mute {
		return nil
	}
	for _, s := range []shape{{20, 1200, 1200}, {20, 1200, 300}} {
		if err := t.exchange(s); err != nil {
			return fmt.Errorf("self-test: a train of %d datagrams received whole: %w", s.count, err)
		}
	}
	return nil
}

// shape is a train of count datagrams, of which the last may be shorter.
type shape struct {
	count, size, last int
}

// selfTestPatience is how long a datagram to the node itself may take, which usually is there when sending returns.
const selfTestPatience = 100 * time.Millisecond

// exchange sends one train and compares what arrives.
func (t *selfTest) exchange(s shape) error {
	var want [][]byte
	for i := range s.count {
		n := s.size
		if i == s.count-1 {
			n = s.last
		}
		b := t.trains.reserve(TxKey{To: t.at}, n)
		for j := range b {
			b[j] = byte(i + j*7 + j>>8)
		}
		want = append(want, bytes.Clone(b))
	}
	t.at.plain.Store(nil)
	var sendErr error
	done := t.sender.run(&t.trains, func(_ *Destination, _ []byte, err error) { sendErr = err })
	t.trains.reset()
	got, err := t.collect(len(want))
	switch {
	case sendErr != nil:
		return fmt.Errorf("send: %w", sendErr)
	case !done:
		return errors.New("send: no room")
	case t.at.plain.Load() != nil:
		return errors.New("the kernel takes it only one by one")
	case err != nil:
		return err
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			return fmt.Errorf("datagram %d arrives changed", i)
		}
	}
	return nil
}

// collect receives until n datagrams are there.
func (t *selfTest) collect(n int) (all [][]byte, err error) {
	deadline := time.Now().Add(selfTestPatience)
	for len(all) < n {
		messages, err := t.receiver.Receive()
		if err != nil {
			return nil, err
		}
		for i := range messages {
			for d := range messages[i].All() {
				all = append(all, bytes.Clone(d))
			}
		}
		left := time.Until(deadline)
		if len(messages) == 0 && left <= 0 {
			return nil, fmt.Errorf("%d of %d datagrams arrive", len(all), n)
		}
		if len(messages) == 0 {
			fds := []unix.PollFd{{Fd: int32(t.to), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
				return nil, fmt.Errorf("poll: %w", err)
			}
		}
	}
	if len(all) > n {
		return nil, fmt.Errorf("%d datagrams arrive of %d", len(all), n)
	}
	return all, nil
}

// addrPortOf turns what the kernel says about a socket into an address.
func addrPortOf(name unix.Sockaddr) netip.AddrPort {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
