package ctrl

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel is the only user of netlink. It belongs to the network namespace of the thread that opened
// it, and is meant for a process that lives in one namespace: sockets that are opened later belong
// to the calling thread's namespace. It is safe for concurrent use, until Close.
type Kernel struct {
	h       *netlink.Handle
	mu      sync.Mutex        // one read or apply at a time; guards the following fields
	batch   *nl.NetlinkSocket // for many operations in one message
	seq     uint32            // of the last message on batch
	replies []byte            // buffer for messages received on batch
	wg      wireGuards
	xfrm    xfrm
	fouOnce sync.Once // of hasFOU
	fou     bool
	ran     map[string]Command // commands of the extension backend that were run, by ID
	closed  bool
	raFixed map[string]bool // devices whose accept_ra this process may not change
}

// netlinkTimeout bounds one exchange with the kernel, which replies at once unless its lock is held
// for long.
const netlinkTimeout = 10 * time.Second

// OpenKernel connects to the network namespace of the calling thread. log receives the messages of
// WireGuard devices that run in this process; nil discards them.
func OpenKernel(log *slog.Logger) (*Kernel, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	batch, err := openBatchSocket()
	if err != nil {
		h.Close()
		return nil, err
	}
	return &Kernel{h: h, batch: batch, wg: newWireGuards(log), xfrm: newXFRM(), ran: map[string]Command{},
		raFixed: map[string]bool{}}, nil
}

// Close closes the connection and stops the WireGuard devices of this process. The kernel's state
// stays. A running Watch is not affected.
func (k *Kernel) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.wg.close()
	k.batch.Close()
	k.h.Close()
}

// retryInterrupted calls f again if a change interrupted a dump or a signal interrupted a call.
// Go's own preemption signals make the latter common.
func retryInterrupted(f func() error) error {
	const tries = 10
	var err error
	for range tries {
		err = f()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return err
}

// dump is retryInterrupted for a call that returns a list.
func dump[T any](objects string, f func() ([]T, error)) ([]T, error) {
	var out []T
	err := retryInterrupted(func() (err error) {
		out, err = f()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", objects, err)
	}
	return out, nil
}
