package poll

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// EventFD wakes a goroutine that polls its descriptor. Closing a descriptor would not: poll(2) does
// not notice that.
type EventFD struct {
	fd int
}

// NewEventFD creates an eventfd(2) that is not signaled.
func NewEventFD() (*EventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	return &EventFD{fd: fd}, nil
}

// FD returns the descriptor to poll.
func (e *EventFD) FD() int { return e.fd }

// Signal makes the descriptor readable. Any goroutine may call it until Close.
func (e *EventFD) Signal() {
	one := [8]byte{1} // any 64-bit number but 0 and the highest, in either byte order
	// The only possible failure is EAGAIN because the counter is full: then the descriptor is
	// readable.
	_, _ = unix.Write(e.fd, one[:])
}

// Clear makes the descriptor unreadable.
func (e *EventFD) Clear() {
	var count [8]byte
	_, _ = unix.Read(e.fd, count[:]) // EAGAIN if it was not readable
}

// Close closes the descriptor.
func (e *EventFD) Close() error { return unix.Close(e.fd) }
