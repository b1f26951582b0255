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

// probeResult is the result of probe.
type probeResult struct {
	unavailable map[feature.Name]error
	segments    int // maximum number of datagrams per train
}

// probe determines which features work. It is not enough to ask the kernel: some accept trains and
// then send garbage (Linux 7.0 to 7.1.4 with some drivers). So probe sends trains to this node and
// compares them byte by byte. If GSO fails on a path later, the sender falls back on its own.
func probe(c Config) probeResult {
	res := probeResult{unavailable: make(map[feature.Name]error), segments: maxSegmentsOld}
	if c.NoGSO {
		res.unavailable[feature.GSO] = feature.ErrDisabled
	}
	if c.NoGRO {
		res.unavailable[feature.GRO] = feature.ErrDisabled
	}
	t, err := newSelfTest(c.Bind.Addr())
	if err != nil {
		return res // opening the group fails for the same reason and returns the error
	}
	defer t.close()
	if res.unavailable[feature.GSO] == nil {
		res.unavailable[feature.GSO] = t.testGSO()
	}
	if res.unavailable[feature.GRO] == nil {
		res.unavailable[feature.GRO] = t.testGRO(res.unavailable[feature.GSO] == nil)
	}
	if res.unavailable[feature.GSO] == nil &&
		t.exchange(trainShape{maxSegmentsNew, 100, 100}) == nil {
		res.segments = maxSegmentsNew
	}
	return res
}

// selfTest sends trains from one socket to another with the same address.
type selfTest struct {
	from, to   int
	at         *Destination // address of the socket to
	trains     trains
	sender     sender
	receiver   receiver
	noLoopback bool // not even a single datagram arrives (no loopback, a firewall): cannot test
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
	t := &selfTest{from: from, to: to, trains: newTrains(1, maxSegmentsNew)}
	t.sender = newSender(from, !addr.Is4(), true)
	t.receiver = newReceiver(to)
	name, err := unix.Getsockname(to)
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.at = NewDestination(addrPortOf(name))
	t.noLoopback = t.exchange(trainShape{1, 100, 100}) != nil
	return t, nil
}

func (t *selfTest) close() error { return errors.Join(unix.Close(t.from), unix.Close(t.to)) }

// testGSO tests segmentation by the kernel: with equal datagrams, where broken kernels fail, and
// with a shorter last one.
func (t *selfTest) testGSO() error {
	// Segment size 0 is the default: this only tests whether the kernel knows the option (Linux
	// 4.18).
	if err := unix.SetsockoptInt(t.from, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0); err != nil {
		return fmt.Errorf("set UDP_SEGMENT: %w", err)
	}
	for _, s := range []trainShape{{20, 1200, 1200}, {20, 1200, 300}, {2, 21, 20}} {
		if err := t.exchange(s); err != nil && !t.noLoopback {
			return fmt.Errorf("self-test: send a train of %d datagrams: %w", s.count, err)
		}
	}
	return nil
}

// testGRO enables GRO on the receiving socket and, if GSO works, tests how trains are received.
func (t *selfTest) testGRO(gso bool) error {
	if err := unix.SetsockoptInt(t.to, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil { // Linux 5.0
		return fmt.Errorf("set UDP_GRO: %w", err)
	}
	if !gso || t.noLoopback {
		return nil
	}
	for _, s := range []trainShape{{20, 1200, 1200}, {20, 1200, 300}} {
		if err := t.exchange(s); err != nil {
			return fmt.Errorf("self-test: receive a train of %d datagrams: %w", s.count, err)
		}
	}
	return nil
}

// trainShape describes a train of count datagrams, of which the last may be shorter.
type trainShape struct {
	count, size, last int
}

// selfTestTimeout is the time to wait for a datagram on loopback. It has usually arrived when the
// send returns.
const selfTestTimeout = 100 * time.Millisecond

// exchange sends one train and compares the received datagrams.
func (t *selfTest) exchange(s trainShape) error {
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
	t.at.gsoOffUntil.Store(nil)
	var sendErr error
	done := t.sender.sendAll(&t.trains, func(_ *Destination, _ []byte, err error) { sendErr = err })
	t.trains.reset()
	got, err := t.collect(len(want))
	switch {
	case sendErr != nil:
		return fmt.Errorf("send: %w", sendErr)
	case !done:
		return errors.New("send: socket buffer full")
	case t.at.gsoOffUntil.Load() != nil:
		return errors.New("kernel accepts the datagrams only one by one")
	case err != nil:
		return err
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			return fmt.Errorf("datagram %d corrupted", i)
		}
	}
	return nil
}

// collect receives n datagrams.
func (t *selfTest) collect(n int) (all [][]byte, err error) {
	deadline := time.Now().Add(selfTestTimeout)
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
			return nil, fmt.Errorf("received %d of %d datagrams", len(all), n)
		}
		if len(messages) == 0 {
			fds := []unix.PollFd{{Fd: int32(t.to), Events: unix.POLLIN}}
			_, err := unix.Poll(fds, int(left.Milliseconds())+1)
			if err != nil && err != unix.EINTR {
				return nil, fmt.Errorf("poll: %w", err)
			}
		}
	}
	if len(all) > n {
		return nil, fmt.Errorf("received %d datagrams, sent %d", len(all), n)
	}
	return all, nil
}

// addrPortOf converts the result of getsockname to an AddrPort.
func addrPortOf(name unix.Sockaddr) netip.AddrPort {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
