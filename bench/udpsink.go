package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpReceiver counts what arrives on one socket.
type udpReceiver struct {
	fd   int
	next []uint64 // number after the highest one seen, by flow

	mu          sync.Mutex
	received    uint64
	reordered   uint64
	first, last time.Time
	err         error
}

// run receives until the socket is hung up.
func (r *udpReceiver) run() {
	b := newBatch(udpBatch, udpHeaderBytes) // the rest of the payload may be cut off
	for {
		n, err := b.receive(r.fd)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		// A socket that was hung up receives messages of no bytes.
		if err != nil || b.messages[0].length == 0 {
			r.mu.Lock()
			r.err = err
			r.mu.Unlock()
			return
		}
		r.count(b, n)
	}
}

// count takes one batch into account.
func (r *udpReceiver) count(b *batch, n int) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range n {
		p := b.payloads[i]
		flow, number := binary.BigEndian.Uint32(p[flowOffset:]), binary.BigEndian.Uint64(p[numberOffset:])
		if b.messages[i].length < udpHeaderBytes || int(flow) >= len(r.next) {
			continue // not ours
		}
		if number < r.next[flow] {
			r.reordered++
		} else {
			r.next[flow] = number + 1
		}
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

// awaitQuiet returns when all packets have come, or none for a while.
func (r *udpReceiver) awaitQuiet(sent uint64) {
	tick := time.NewTicker(quietAfter)
	defer tick.Stop()
	for before := uint64(0); ; {
		now := r.result().Received
		if now >= sent {
			return
		}
		<-tick.C
		if after := r.result().Received; after == now && now == before {
			return
		}
		before = now
	}
}

func (r *udpReceiver) result() UDPResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	result := UDPResult{Received: r.received, Reordered: r.reordered}
	if d := r.last.Sub(r.first).Seconds(); d > 0 {
		result.ReceivedRate = float64(r.received) / d
	}
	return result
}

// skMeminfoDrops is SK_MEMINFO_DROPS of linux/sock_diag.h, an index into the array that SO_MEMINFO returns.
const skMeminfoDrops = 8

// socketDrops asks how many packets a socket has refused because its buffer was full.
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
