// Package tun opens the TUN device of the overlay and moves frames through its queues.
//
// A Device has one Queue a worker. All methods of a queue but Close belong to the goroutine that owns it. No
// call blocks: the owner polls FD together with its other descriptors.
package tun

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a queue's Read or Write may fail with besides plain system call errors.
var (
	// ErrGone says that the device was deleted under the queue; only opening it again helps.
	ErrGone = errors.New("the device is gone")
	// ErrDown says that the device is administratively down; it works again once it is up.
	ErrDown = errors.New("the device is down")
)

// Config is what Open needs to know.
type Config struct {
	Name   string // a name, or a pattern such as "flannel%d" that the kernel fills in
	Queues int    // how many queues, at least 1
	MTU    int    // to be set on the device, in bytes; 0 leaves the kernel's default
}

// Frame is what a queue gives and takes: one inner packet.
type Frame struct {
	Packet []byte
}

// Device is a TUN device that lives as long as one of its queues is open.
type Device struct {
	name   string
	queues []*Queue
}

// Name returns the name that the kernel gave the device.
func (d *Device) Name() string { return d.name }

// Queues returns the queues, which the caller then owns one by one.
func (d *Device) Queues() []*Queue { return d.queues }

// Close closes all queues, and with them the device disappears. No queue may be in use any more.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// maxFrame is the longest frame of a TUN: IPv4's total length has 16 bits, and the kernel's default
// gso_max_size keeps super-frames of both families below 65,536 bytes.
const maxFrame = 65536

// Queue is one queue of a Device.
type Queue struct {
	fd  int
	buf []byte
}

// FD returns the descriptor to poll; it stays the queue's own.
func (q *Queue) FD() int { return q.fd }

// Read returns the next frame, which is the caller's until the next Read. A frame without a packet says that
// the queue is empty for now.
func (q *Queue) Read() (Frame, error) {
	for {
		n, err := unix.Read(q.fd, q.buf)
		switch err {
		case nil:
			return Frame{Packet: q.buf[:n]}, nil
		case unix.EAGAIN:
			return Frame{}, nil
		case unix.EINTR:
			continue
		}
		return Frame{}, fmt.Errorf("read from the TUN: %w", named(err))
	}
}

// Write hands the frame to the kernel, which takes it as received on the device. It does not keep f.
func (q *Queue) Write(f Frame) error {
	for {
		_, err := unix.Write(q.fd, f.Packet)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		}
		return named(err)
	}
}

// Close closes the queue's descriptor.
func (q *Queue) Close() error {
	if err := unix.Close(q.fd); err != nil {
		return fmt.Errorf("close TUN queue: %w", err)
	}
	return nil
}

// named turns the errors that ask for a remedy into this package's own.
func named(err error) error {
	switch err {
	case unix.EBADFD: // drivers/net/tun.c, tun_get without a device
		return ErrGone
	case unix.EIO: // drivers/net/tun.c, tun_get_user: the device is not IFF_UP
		return ErrDown
	}
	return err
}

// Dropped returns how many packets the kernel dropped because the queues of the named device were full, in the
// network namespace of the calling thread. Nobody else is told of these: a sender into a full TUN sees success.
func Dropped(name string) (uint64, error) {
	table, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return 0, fmt.Errorf("read the device counters: %w", err)
	}
	for line := range strings.Lines(string(table)) {
		dev, counters, _ := strings.Cut(line, ":")
		if strings.TrimSpace(dev) != name {
			continue
		}
		const transmitDrop = 11 // net/core/net-procfs.c, dev_seq_printf_stats: 8 receive columns, then bytes, packets, errs, drop
		if f := strings.Fields(counters); len(f) > transmitDrop {
			return strconv.ParseUint(f[transmitDrop], 10, 64)
		}
	}
	return 0, fmt.Errorf("no counters for device %s", name)
}
