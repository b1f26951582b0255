package ctrl

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// wireguardBind sends as the kernel's WireGuard does where the library's sockets give up.
type wireguardBind struct{ conn.Bind }

// Send sends one packet at a time if the path's MTU is smaller than the packets: the kernel
// refuses to segment a train of packets then, but fragments single ones. If the source address that
// the endpoint remembers is gone, it lets the kernel choose another one.
func (b wireguardBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(bufs, ep)
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		return b.sendEach(bufs, ep)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EADDRNOTAVAIL):
		fresh, parseErr := b.ParseEndpoint(ep.DstToString())
		if parseErr != nil {
			return err
		}
		return b.Bind.Send(bufs, fresh)
	}
	return err
}

// sendEach sends the packets in separate calls. Peers ignore those that they have received already.
func (b wireguardBind) sendEach(bufs [][]byte, ep conn.Endpoint) error {
	var errs []error
	for i := range bufs {
		errs = append(errs, b.Bind.Send(bufs[i:i+1], ep))
	}
	return errors.Join(errs...)
}

// repeatInterval is the minimum time between two log messages with the same text.
const repeatInterval = 10 * time.Second

// repeatFilter drops log messages that repeat the last one: WireGuard logs each failed packet.
type repeatFilter struct {
	log *slog.Logger

	mu   sync.Mutex // guards the fields below
	last string
	at   time.Time
}

func (f *repeatFilter) warn(msg string, args ...any) {
	f.mu.Lock()
	repeated := msg == f.last && time.Since(f.at) < repeatInterval
	if !repeated {
		f.last, f.at = msg, time.Now()
	}
	f.mu.Unlock()
	if !repeated {
		f.log.Warn(msg, args...)
	}
}
