package doctor

import (
	"context"
	"net/netip"
	"time"
)

// Ping sends echo requests of size bytes, IP header included, to dst until one is answered, at most
// three. It waits for an answer to each as long as wait. Requests are not fragmented. They are sent
// from the network namespace of the calling thread, and need CAP_NET_RAW.
func Ping(ctx context.Context, dst netip.Addr, size int, wait time.Duration) Echo {
	return PingMarked(ctx, dst, size, wait, Marks{})
}

// Marks are the marks of echo requests by which the fast path of the udp backend leaves them to its
// workers. The zero value has none.
type Marks struct {
	TOS      int // TOS or traffic class, which the answers have, too
	Priority int // of the socket (SO_PRIORITY), for requests of the host itself
}

// PingMarked is Ping with marks.
func PingMarked(
	ctx context.Context, dst netip.Addr, size int, wait time.Duration, m Marks,
) Echo {
	return echo(ctx, echoRequest{dst: dst, size: size, tries: probeTries, wait: wait, whole: true,
		priority: m.Priority, tos: m.TOS})
}

// EchoSize is the size of a small echo request in bytes, that of the ping program.
const EchoSize = echoSize
