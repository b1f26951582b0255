package dataplane

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// sleeper waits for descriptors in the poller of Go's scheduler, as a goroutine that reads from a net.Conn does. Had a
// worker poll(2) itself, Go's monitor thread would take its P away and later help it to another, and after that look
// around every 20 us for a while (runtime.sysmon): a ping every 20 ms cost the two daemons 2,000 us of CPU time and took
// 340 us, with the scheduler's poller 550 us and 290 us.
type sleeper struct {
	epoll int                // an epoll instance, which is watched by the scheduler's own
	file  *os.File           // the same
	conn  syscall.RawConn    // of file
	awake func(uintptr) bool // ready, bound once: a method value allocates
	took  bool               // the thread that polled for the scheduler, by waking up on it
	relay chan<- struct{}    // makes another thread do so

	fds     []unix.PollFd // those of this sleep
	err     error         // and what has ended it too early
	watched []unix.PollFd // what the epoll instance has: that of the last sleep, until stayAwake
}

// newSleeper returns a sleeper that needs relayPolling to run at the other end of relay, which has room for one.
func newSleeper(relay chan<- struct{}) (*sleeper, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	// A non-blocking descriptor is one that os.NewFile has the scheduler wait for.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("make the epoll instance non-blocking: %w", err), unix.Close(fd))
	}
	s := &sleeper{epoll: fd, file: os.NewFile(uintptr(fd), "epoll"), relay: relay}
	s.awake = s.ready
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// until sleeps until one of fds is ready, and sets what is ready of each.
func (s *sleeper) until(fds []unix.PollFd) error {
	s.fds, s.err = fds, nil
	// Packets that come one by one find everything as the last one left it.
	if !slices.EqualFunc(fds, s.watched, sameInterest) {
		if err := errors.Join(s.unwatch(), s.watch()); err != nil {
			return err
		}
	}
	err := errors.Join(s.conn.Read(s.awake), s.err)
	s.took = true
	return err
}

func sameInterest(a, b unix.PollFd) bool { return a.Fd == b.Fd && a.Events == b.Events }

// stayAwake is to be called before the goroutine, woken, goes on for longer than it takes to move a few packets. The
// thread it was woken on is the one that polled for the whole process, and the scheduler expects it back soon: until then
// it might not notice that others in its poller, another worker say, have become ready. So another thread has to step in,
// which must not be woken by every packet of a busy time.
func (s *sleeper) stayAwake() error {
	if !s.took {
		return nil
	}
	s.took = false
	err := s.unwatch()
	select {
	case s.relay <- struct{}{}:
	default: // one is about to
	}
	return err
}

// forget is to be called before fd is closed. The kernel takes it out of the epoll instance then, and another that gets
// its number must not be taken for it.
func (s *sleeper) forget(fd int) {
	s.watched = slices.DeleteFunc(s.watched, func(p unix.PollFd) bool { return p.Fd == int32(fd) })
}

// relayPolling runs until relay is closed. A goroutine that becomes runnable gets a thread, and a thread that has run out
// of goroutines polls.
func relayPolling(relay <-chan struct{}) {
	for range relay {
	}
}

// ready is asked before the goroutine is parked and whenever the scheduler wakes it.
func (s *sleeper) ready(uintptr) bool {
	n, err := look(s.fds, 0)
	s.err = err
	return n > 0 || err != nil
}

// watch adds the descriptors of this sleep to the epoll instance, which has none. One may stand among them twice.
func (s *sleeper) watch() error {
	for _, p := range s.fds {
		event := unix.EpollEvent{Fd: p.Fd}
		for _, q := range s.fds {
			if q.Fd == p.Fd {
				event.Events |= uint32(q.Events)
			}
		}
		if !s.watches(p.Fd) {
			if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, int(p.Fd), &event); err != nil {
				return fmt.Errorf("watch a descriptor: %w", err)
			}
		}
		s.watched = append(s.watched, p)
	}
	return nil
}

// watches reports whether the epoll instance has the descriptor. A negative one is nobody's business.
func (s *sleeper) watches(fd int32) bool {
	return fd < 0 || slices.ContainsFunc(s.watched, func(p unix.PollFd) bool { return p.Fd == fd })
}

// unwatch takes all descriptors out of the epoll instance.
func (s *sleeper) unwatch() error {
	for len(s.watched) > 0 {
		last := s.watched[len(s.watched)-1]
		s.watched = s.watched[:len(s.watched)-1]
		if s.watches(last.Fd) {
			continue
		}
		if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, int(last.Fd), nil); err != nil {
			return fmt.Errorf("watch a descriptor no longer: %w", err)
		}
	}
	return nil
}

// Close closes the epoll instance. Nobody may be asleep.
func (s *sleeper) Close() error { return s.file.Close() }
