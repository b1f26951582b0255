package ctrl

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel is the only door to netlink. It belongs to the network namespace of the thread that opened it, and is meant
// for a process that lives in one: what has no socket yet is opened where the calling thread is. It is safe for
// concurrent use, until Close.
type Kernel struct {
	h     *netlink.Handle
	mu    sync.Mutex        // one read, apply or Self at a time; guards what follows
	bulk  *nl.NetlinkSocket // for many operations in one message
	seq   uint32            // of the last message on bulk
	wg    wireGuards
	fou   sync.Once // of hasFOU
	isFOU bool
	ran   map[string]Command // commands of the extension backend that were run, by ID
	noRA  map[string]bool    // devices whose router advertisements we are not allowed to turn off
}

// netlinkTimeout bounds one exchange with the kernel, which answers at once unless its lock is held for long.
const netlinkTimeout = 10 * time.Second

// OpenKernel connects to the network namespace of the calling thread.
func OpenKernel() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	bulk, err := openBulk()
	if err != nil {
		h.Close()
		return nil, err
	}
	return &Kernel{h: h, bulk: bulk, wg: newWireGuards(), ran: map[string]Command{}, noRA: map[string]bool{}}, nil
}

// LogTo says where a WireGuard that runs in this process may complain; without it, it is silent.
func (k *Kernel) LogTo(log *slog.Logger) { k.wg.log = log }

// Close ends the connection and a WireGuard that runs in this process. What is in the kernel stays. A watch is not ended
// by it.
func (k *Kernel) Close() {
	k.wg.close()
	k.bulk.Close()
	k.h.Close()
}

// again calls f until the kernel gave a whole answer: a dump that a change interrupted, and a call that a signal
// interrupted, are asked for again. Go's own preemption signals make the latter ordinary.
func again(f func() error) error {
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

// dump is again for a call that returns a list.
func dump[T any](what string, f func() ([]T, error)) ([]T, error) {
	var out []T
	err := again(func() (err error) {
		out, err = f()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", what, err)
	}
	return out, nil
}

// hasFOU says whether the kernel has foo over UDP. It asks once, as each question makes the kernel look for a module.
func (k *Kernel) hasFOU() bool {
	k.fou.Do(func() { k.isFOU = askFOU() == nil })
	return k.isFOU
}

// askFOU asks the kernel for the generic netlink family of foo over UDP. netlink.FouFamilyId would do it too, but its
// request reads two bytes beyond its own header (nl.Genlmsg.Serialize of v1.3.1), which are another goroutine's.
func askFOU() error {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return fmt.Errorf("open generic netlink: %w", err)
	}
	_, err = c.GetFamily(netlink.FOU_GENL_NAME)
	return errors.Join(err, c.Close())
}
