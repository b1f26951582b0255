package backend

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BenchmarkNetnsTxQueueLen is the measurement for tunTxQueueLen: bursts of UDP packets into a TUN
// with two queues whose readers are away for some time when the burst starts. It reports the lost
// packets per burst, and the waiting time of the packets of an endless sender (99th percentile).
// Run it in a namespace:
//
//	go test -c -o backend.test ./ctrl/backend
//	WEFT_TXQUEUE=1 unshare -rn ./backend.test -test.run=^$ -test.bench=TxQueueLen -test.benchtime=10x
func BenchmarkNetnsTxQueueLen(b *testing.B) {
	if os.Getenv("WEFT_TXQUEUE") == "" {
		b.Skip("changes the devices of its namespace: set WEFT_TXQUEUE=1 in one of its own")
	}
	const flood = 200_000
	for _, qlen := range []int{500, 1000, 2000, 5000, 10000} {
		q := newQueueRig(b, qlen)
		for _, burst := range []int{1000, 3000, 10000} {
			for _, lag := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond} {
				b.Run(fmt.Sprintf("qlen=%d/burst=%d/lag=%v", qlen, burst, lag), func(b *testing.B) {
					lost := 0
					for b.Loop() {
						lost += q.burst(b, burst, lag)
					}
					b.ReportMetric(float64(lost)/float64(b.N), "lost/burst")
				})
			}
		}
		b.Run(fmt.Sprintf("qlen=%d/flood", qlen), func(b *testing.B) {
			for b.Loop() {
				waits := q.flood(b, flood)
				b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds())/1000, "ms-wait-p99")
				b.ReportMetric(float64(flood-len(waits))*100/flood, "%lost")
			}
		})
		q.close()
	}
}

// queueRig is a TUN of two queues with a reader each, and a UDP socket that sends into it.
type queueRig struct {
	fds   []int
	conn  *net.UDPConn
	sent  atomic.Bool // the sender is done
	start chan time.Duration
	idle  chan []time.Duration // the waits of the packets that a reader took
}

func newQueueRig(b *testing.B, qlen int) *queueRig {
	const name = "txq0"
	q := &queueRig{start: make(chan time.Duration), idle: make(chan []time.Duration)}
	for range 2 {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			b.Fatal(err)
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			b.Fatal(err)
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			b.Fatal(err)
		}
		q.fds = append(q.fds, fd)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		b.Fatal(err)
	}
	_, dst, _ := net.ParseCIDR("10.9.0.1/24")
	for _, err := range []error{
		netlink.LinkSetTxQLen(l, qlen),
		netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 1), Mask: dst.Mask}}),
		netlink.LinkSetUp(l),
	} {
		if err != nil {
			b.Fatal(err)
		}
	}
	q.conn, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 9})
	if err != nil {
		b.Fatal(err)
	}
	for _, fd := range q.fds {
		go q.read(fd)
	}
	return q
}

func (q *queueRig) close() {
	close(q.start)
	q.conn.Close()
	for _, fd := range q.fds {
		unix.Close(fd)
	}
}

// read stays away for the given lag, then takes packets until the sender is done and none has come
// for 20 ms.
func (q *queueRig) read(fd int) {
	buf := make([]byte, 2048)
	for lag := range q.start {
		time.Sleep(lag)
		var waits []time.Duration
		for {
			n, err := unix.Read(fd, buf)
			if err == nil {
				if n >= 36 && buf[9] == unix.IPPROTO_UDP {
					sent := int64(binary.NativeEndian.Uint64(buf[28:]))
					waits = append(waits, time.Duration(time.Now().UnixNano()-sent))
				}
				continue
			}
			n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20)
			if n == 0 && q.sent.Load() {
				break
			}
		}
		q.idle <- waits
	}
}

func (q *queueRig) send(b *testing.B, n int) {
	payload := make([]byte, 100)
	for range n {
		binary.NativeEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
		if _, err := q.conn.Write(payload); err != nil {
			b.Fatal(err)
		}
	}
}

func (q *queueRig) run(b *testing.B, n int, lag time.Duration) []time.Duration {
	q.sent.Store(false)
	for range q.fds {
		q.start <- lag
	}
	q.send(b, n)
	q.sent.Store(true)
	var waits []time.Duration
	for range q.fds {
		waits = append(waits, <-q.idle...)
	}
	return waits
}

func (q *queueRig) burst(b *testing.B, n int, lag time.Duration) int {
	return n - len(q.run(b, n, lag))
}

// flood sends n packets as fast as one sender can and returns how long each waited, sorted.
func (q *queueRig) flood(b *testing.B, n int) []time.Duration {
	waits := q.run(b, n, 0)
	if len(waits) == 0 {
		b.Fatal("nothing came through")
	}
	slices.Sort(waits)
	return waits
}
