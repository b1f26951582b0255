package poll

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// netpollWaiter waits for descriptors in the runtime's netpoller, as a goroutine in net.Conn.Read
// does. If a worker called poll(2) instead, Go's monitor thread would take away its P, later pass
// that on, and wake up every 20 µs for a while (runtime.sysmon). A ping every 20 ms took 340 µs and
// cost the two daemons 2,000 µs of CPU time with poll(2); with the netpoller it took 290 µs and
// cost 550 µs.
type netpollWaiter struct {
	epoll   int                // epoll instance, itself registered with the netpoller
	file    *os.File           // owns epoll
	conn    syscall.RawConn    // of file
	onReady func(uintptr) bool // the method ready, bound once: a method value allocates
	woke    bool               // the goroutine may be on the thread that ran the netpoller
	handoff *Handoff

	fds        []unix.PollFd // of the wait in progress
	err        error         // of polling fds
	registered []unix.PollFd // in the epoll instance: those of the last wait, until leave
}

func newNetpollWaiter(handoff *Handoff) (*netpollWaiter, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	// os.NewFile registers only a non-blocking descriptor with the netpoller.
	if err := unix.SetNonblock(fd, true); err != nil {
		err = fmt.Errorf("set epoll instance non-blocking: %w", err)
		return nil, errors.Join(err, unix.Close(fd))
	}
	w := &netpollWaiter{epoll: fd, file: os.NewFile(uintptr(fd), "epoll"), handoff: handoff}
	w.onReady = w.ready
	if w.conn, err = w.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// wait blocks until one of fds is ready and sets their Revents.
func (w *netpollWaiter) wait(fds []unix.PollFd) error {
	w.fds, w.err = fds, nil
	// With sparse traffic the descriptors are still registered from the last wait.
	if !slices.EqualFunc(fds, w.registered, sameInterest) {
		if err := errors.Join(w.unregister(), w.register()); err != nil {
			return err
		}
	}
	err := errors.Join(w.conn.Read(w.onReady), w.err)
	w.woke = true
	return err
}

func sameInterest(a, b unix.PollFd) bool { return a.Fd == b.Fd && a.Events == b.Events }

// leave must be called before the goroutine, woken by wait, runs for longer than a few packets
// take. The woken thread is the one that ran the netpoller. Until it returns to the scheduler,
// other descriptors, such as another worker's, may not be noticed. So another thread takes over the
// netpoller, which must not wake it per packet in a busy period: leave unregisters the descriptors.
func (w *netpollWaiter) leave() error {
	if !w.woke {
		return nil
	}
	w.woke = false
	err := w.unregister()
	w.handoff.request()
	return err
}

// forget must be called before fd is closed. Closing removes it from the epoll instance, so a new
// descriptor with the same number must be registered again.
func (w *netpollWaiter) forget(fd int) {
	w.registered = slices.DeleteFunc(w.registered, func(p unix.PollFd) bool {
		return p.Fd == int32(fd)
	})
}

// Handoff passes the netpoller from the thread of a woken worker to another thread. It wakes a
// goroutine, which needs a thread, and a thread without another goroutine to run polls.
type Handoff struct {
	requests chan struct{} // holds one
}

// NewHandoff returns a Handoff, to be served by Run.
func NewHandoff() *Handoff { return &Handoff{requests: make(chan struct{}, 1)} }

// Run serves requests until Stop. Without it, requests have no effect.
func (h *Handoff) Run() {
	for range h.requests {
	}
}

// Stop ends Run. No waiter may be in use any more.
func (h *Handoff) Stop() { close(h.requests) }

func (h *Handoff) request() {
	select {
	case h.requests <- struct{}{}:
	default: // one is pending
	}
}

// ready polls the descriptors. RawConn.Read calls it before it parks the goroutine and whenever the
// netpoller wakes it.
func (w *netpollWaiter) ready(uintptr) bool {
	n, err := rawPoll(w.fds, 0)
	w.err = err
	return n > 0 || err != nil
}

// register adds fds to the epoll instance, which must be empty. A descriptor may be listed twice.
func (w *netpollWaiter) register() error {
	for _, p := range w.fds {
		event := unix.EpollEvent{Fd: p.Fd}
		for _, q := range w.fds {
			if q.Fd == p.Fd {
				event.Events |= uint32(q.Events)
			}
		}
		if !w.skip(p.Fd) {
			if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, int(p.Fd), &event); err != nil {
				return fmt.Errorf("add descriptor to epoll: %w", err)
			}
		}
		w.registered = append(w.registered, p)
	}
	return nil
}

// skip reports whether fd needs no epoll_ctl(2): it is registered, or negative and thus ignored.
func (w *netpollWaiter) skip(fd int32) bool {
	return fd < 0 || slices.ContainsFunc(w.registered, func(p unix.PollFd) bool {
		return p.Fd == fd
	})
}

// unregister removes all descriptors from the epoll instance.
func (w *netpollWaiter) unregister() error {
	for len(w.registered) > 0 {
		last := w.registered[len(w.registered)-1]
		w.registered = w.registered[:len(w.registered)-1]
		if w.skip(last.Fd) {
			continue
		}
		if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, int(last.Fd), nil); err != nil {
			return fmt.Errorf("remove descriptor from epoll: %w", err)
		}
	}
	return nil
}

// Close closes the epoll instance. No wait may be in progress.
func (w *netpollWaiter) Close() error { return w.file.Close() }
