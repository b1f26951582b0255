package etcd

import (
	"context"
	"net"
	"strings"
	"time"
)

// While leases change all the time, most of a daemon's work would be to wake up: the client reads
// each change as it arrives, in five goroutines one after another. So after a burst of readBurst
// small reads, the connection is read every readInterval, and each read finds the changes of that
// time. Larger reads are not delayed, so that a list of all leases arrives as fast as it can.
const (
	readInterval = 50 * time.Millisecond
	readBurst    = 100
	smallRead    = 8 << 10
)

// pacedConn is a connection whose small reads are joined. Read must not be called concurrently.
type pacedConn struct {
	net.Conn
	spent time.Time // when the reads so far are paid for, at one per readInterval
}

// Read waits until a read is due.
func (c *pacedConn) Read(b []byte) (int, error) {
	const credit = readBurst * readInterval
	if early := time.Until(c.spent.Add(-credit)); early > 0 {
		time.Sleep(early)
	}
	n, err := c.Conn.Read(b)
	if n < smallRead {
		now := time.Now()
		if c.spent.Before(now) {
			c.spent = now
		}
		c.spent = c.spent.Add(readInterval)
	}
	return n, err
}

// dial connects to an address as gRPC resolves it: host and port, or unix: and a path.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", strings.TrimPrefix(path, "//")
	}
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &pacedConn{Conn: c}, nil
}
