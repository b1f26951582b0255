package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// checkTimeout bounds a dial, and a check of [CheckTCP] whose context has no deadline.
const checkTimeout = 10 * time.Second

// Listen opens a TCP listener inside the namespace, on a free port if port is 0.
func (ns *NS) Listen(a netip.Addr, port uint16) (l net.Listener, err error) {
	err = ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(a, port).String())
		return err
	})
	return l, err
}

// ListenUDP opens a UDP socket inside the namespace, on a free port if port is 0.
func (ns *NS) ListenUDP(a netip.Addr, port uint16) (c *net.UDPConn, err error) {
	err = ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
		return err
	})
	return c, err
}

// Dial opens a connection ("tcp" or "udp") from inside the namespace.
func (ns *NS) Dial(network string, to netip.AddrPort) (c net.Conn, err error) {
	err = ns.Do(func() (err error) {
		// A single address: the dialer starts no second goroutine, which would run in another
		// namespace.
		c, err = net.DialTimeout(network, to.String(), checkTimeout)
		return err
	})
	return c, err
}

// CheckTCP sends size random bytes over one TCP connection and checks that exactly they arrive,
// before the deadline of the context or, without one, within 10 seconds.
func CheckTCP(ctx context.Context, from *NS, to *NS, at netip.Addr, size int64) error {
	if _, ok := ctx.Deadline(); !ok {
		limited, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		ctx = limited
	}
	listener, err := to.Listen(at, 0)
	if err != nil {
		return fmt.Errorf("check TCP %s to %s: %w", from.Name, to.Name, err)
	}
	defer listener.Close()
	received := make(chan error, 1)
	var sum [sha256.Size]byte
	deadline, _ := ctx.Deadline()
	go func() { received <- receiveSum(listener, deadline, &sum) }()
	sent, err := sendSum(ctx, from, listener.Addr().(*net.TCPAddr).AddrPort(), size)
	if err != nil {
		return fmt.Errorf("check TCP %s to %s: send: %w", from.Name, to.Name, err)
	}
	if err := <-received; err != nil {
		return fmt.Errorf("check TCP %s to %s: receive: %w", from.Name, to.Name, err)
	}
	if sent != sum {
		return fmt.Errorf("check TCP %s to %s: received bytes differ from those sent",
			from.Name, to.Name)
	}
	return nil
}

// sendSum sends size random bytes to an address, before the deadline of the context, and returns
// their hash.
func sendSum(
	ctx context.Context, from *NS, to netip.AddrPort, size int64,
) (sum [sha256.Size]byte, err error) {
	conn, err := from.Dial("tcp", to)
	if err != nil {
		return sum, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return sum, err
	}
	hash := sha256.New()
	source := io.LimitReader(rand.NewChaCha8([32]byte{}), size)
	if _, err := io.Copy(conn, io.TeeReader(source, hash)); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(hash.Sum(nil)), conn.Close()
}

// receiveSum accepts one connection and stores the hash of everything it receives.
func receiveSum(l net.Listener, deadline time.Time, sum *[sha256.Size]byte) error {
	if err := l.(*net.TCPListener).SetDeadline(deadline); err != nil {
		return err
	}
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, conn); err != nil {
		return err
	}
	*sum = [sha256.Size]byte(hash.Sum(nil))
	return nil
}

// CheckUDP sends datagrams of the given payload sizes one after the other to an echo server and
// compares every byte. A lost datagram fails the check.
func CheckUDP(ctx context.Context, from *NS, to *NS, at netip.Addr, sizes ...int) error {
	err := checkUDP(ctx, from, to, at, sizes)
	if err != nil {
		return fmt.Errorf("check UDP %s to %s: %w", from.Name, to.Name, err)
	}
	return nil
}

func checkUDP(ctx context.Context, from *NS, to *NS, at netip.Addr, sizes []int) error {
	server, err := to.ListenUDP(at, 0)
	if err != nil {
		return err
	}
	defer server.Close()
	go echo(server)
	client, err := from.Dial("udp", server.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		return err
	}
	defer client.Close()
	reply := make([]byte, 1<<16)
	for _, size := range sizes {
		if err := ctx.Err(); err != nil {
			return err
		}
		sent := make([]byte, size)
		for i := range sent {
			sent[i] = byte(rand.Uint32())
		}
		if err := client.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := client.Write(sent); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
		n, err := client.Read(reply)
		if err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
		if string(reply[:n]) != string(sent) {
			return fmt.Errorf("%d bytes: the reply differs (%d bytes)", size, n)
		}
	}
	return nil
}

// echo sends every datagram back until the socket is closed.
func echo(c *net.UDPConn) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			// The client notices a missing reply by itself.
			_, _ = c.WriteToUDPAddrPort(buffer[:n], from)
		}
	}
}
