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
	return echo(ctx, echoRequest{dst: dst, size: size, tries: probeTries, wait: wait, whole: true})
}

// EchoSize is the size of a small echo request in bytes, that of the ping program.
const EchoSize = echoSize
