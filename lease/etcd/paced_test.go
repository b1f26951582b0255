package etcd

import (
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// sourceConn has a byte more to read every interval.
type sourceConn struct {
	net.Conn
	interval time.Duration
	began    time.Time
	read     int
}

func (c *sourceConn) Read(b []byte) (int, error) {
	for {
		if n := min(int(time.Since(c.began)/c.interval)-c.read, len(b)); n > 0 {
			c.read += n
			return n, nil
		}
		time.Sleep(c.interval)
	}
}

func TestPacedReads(t *testing.T) {
	for _, c := range []struct {
		name          string
		interval      time.Duration // between two bytes
		during        time.Duration
		fewest, most  int // reads
		buffer, bytes int
	}{
		{"a burst", time.Millisecond, 90 * time.Millisecond, 89, 91, 4096, 89},
		{"a hundred per second", 10 * time.Millisecond, 20 * time.Second, 480, 510, 4096, 1990},
		{"ten per second", 100 * time.Millisecond, time.Minute, 599, 601, 4096, 599},
		{"100 kB per second", 10 * time.Microsecond, 10 * time.Second, 290, 310, 1 << 14, 900_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				source := &sourceConn{interval: c.interval, began: began}
				p := &pacedConn{Conn: source}
				b := make([]byte, c.buffer)
				reads := 0
				for time.Since(began) < c.during {
					before := time.Now()
					if _, err := p.Read(b); err != nil {
						t.Fatal(err)
					}
					reads++
					if d := time.Since(before); d > readInterval+c.interval {
						t.Errorf("a read took %v", d)
					}
				}
				if reads < c.fewest || reads > c.most || source.read < c.bytes {
					t.Errorf("%d bytes in %d reads, want at least %d in %d to %d", source.read, reads,
						c.bytes, c.fewest, c.most)
				}
			})
		})
	}
}

// TestDial checks the two forms of addresses.
func TestDial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	for _, c := range []struct{ network, listen, prefix string }{
		{"tcp", "127.0.0.1:0", ""}, {"unix", path, "unix://"},
	} {
		l, err := net.Listen(c.network, c.listen)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dial(t.Context(), c.prefix+l.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", c.network, err)
		} else if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
