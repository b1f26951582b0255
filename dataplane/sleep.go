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
// around every 20 us for a while (runtime.sysmon): a ping every 20 ms cost the two daemons 1,850 us of CPU time and took
// 325 us, with the scheduler's poller 350 us and 236 us.
type sleeper struct {
	epoll int             // an epoll instance, which is watched by the scheduler's own
	file  *os.File        // the same
	conn  syscall.RawConn // of file
	awake func(uintptr) bool

	fds []unix.PollFd // those of this sleep
	err error         // and what has ended it too early
}

func newSleeper() (*sleeper, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	// A non-blocking descriptor is one that os.NewFile has the scheduler wait for.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("make the epoll instance non-blocking: %w", err), unix.Close(fd))
	}
	s := &sleeper{epoll: fd, file: os.NewFile(uintptr(fd), "epoll")}
	s.awake = s.ready // bound once: a method value allocates
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// until sleeps until one of fds is ready, and sets what is ready of each.
func (s *sleeper) until(fds []unix.PollFd) error {
	s.fds, s.err = fds, nil
	// They are watched only now: else every packet of a busy time would wake a thread of the scheduler.
	err := s.watch(unix.EPOLL_CTL_ADD)
	if err == nil {
		err = errors.Join(s.conn.Read(s.awake), s.err)
	}
	return errors.Join(err, s.watch(unix.EPOLL_CTL_DEL))
}

// ready is asked before the goroutine is parked and whenever the scheduler wakes it.
func (s *sleeper) ready(uintptr) bool {
	n, err := look(s.fds, 0)
	s.err = err
	return n > 0 || err != nil
}

// watch adds the descriptors to the epoll instance, or takes them out. One may stand among them twice.
func (s *sleeper) watch(op int) error {
	for i, p := range s.fds {
		same := func(q unix.PollFd) bool { return q.Fd == p.Fd }
		if p.Fd < 0 || slices.ContainsFunc(s.fds[:i], same) {
			continue
		}
		event := unix.EpollEvent{Fd: p.Fd}
		for _, q := range s.fds[i:] {
			if same(q) {
				event.Events |= uint32(q.Events)
			}
		}
		if err := unix.EpollCtl(s.epoll, op, int(p.Fd), &event); err != nil {
			return fmt.Errorf("watch descriptors: %w", err)
		}
	}
	return nil
}

// Close closes the epoll instance. Nobody may be asleep.
func (s *sleeper) Close() error { return s.file.Close() }
