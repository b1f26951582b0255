package dataplane

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// wakeup gets a worker out of its poll: an eventfd, since closing a descriptor does not wake who polls it.
type wakeup struct {
	fd int
}

func newWakeup() (*wakeup, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	return &wakeup{fd: fd}, nil
}

// signal makes the descriptor readable. Any goroutine may call it until Close.
func (w *wakeup) signal() {
	one := [8]byte{1} // any 64-bit number but 0 and the highest, in either byte order
	// The only possible failure is EAGAIN of a counter that is full, and then the worker wakes anyway.
	_, _ = unix.Write(w.fd, one[:])
}

// clear makes it unreadable again.
func (w *wakeup) clear() {
	var count [8]byte
	_, _ = unix.Read(w.fd, count[:]) // EAGAIN if somebody was faster
}

// Close closes the descriptor.
func (w *wakeup) Close() error { return unix.Close(w.fd) }
