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
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap/offload"
)

// What a queue's Read or Write may fail with besides plain system call errors.
var (
	// ErrGone says that the device was deleted under the queue; only opening it again helps.
	ErrGone = errors.New("the device is gone")
	// ErrDown says that the device is administratively down; it works again once it is up.
	ErrDown = errors.New("the device is down")
	// ErrGSORejected says that the kernel does not take this super-frame; its segments one by one it does.
	ErrGSORejected = errors.New("the kernel refuses the super-frame")
)

// MaxQueues is how many queues a device can have: the kernel's 256 (MAX_TAP_QUEUES of drivers/net/tun.c) less the one by
// which OpenPortable holds the device meanwhile.
const MaxQueues = 255

// Config is what Open needs to know.
type Config struct {
	Name   string // a name, or a pattern such as "flannel%d" that the kernel fills in
	Queues int    // how many queues, 1 to MaxQueues
	MTU    int    // to be set on the device, in bytes; 0 leaves the kernel's default
	NoTSO  bool   // OpenOffload: no TCP super-frames
	NoUSO  bool   // OpenOffload: no UDP super-frames
}

// Frame is what a queue gives and takes: one inner packet, or a super-frame that Header tells how to cut. On a
// device of OpenPortable the header is always zero.
type Frame struct {
	Header offload.Header
	Packet []byte
}

// Device is a TUN device that lives as long as one of its queues is open.
type Device struct {
	name   string
	queues []*Queue
	lacks  map[feature.Name]error
}

// Features returns all features; each with the reason for which the device is without it, nil if it has it.
func (d *Device) Features() map[feature.Name]error {
	all := make(map[feature.Name]error, len(d.lacks))
	for _, f := range []feature.Name{feature.VnetHeader, feature.TSO, feature.USO} {
		all[f] = d.lacks[f]
	}
	return all
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
	fd     int
	header int // bytes of virtio header before each frame
	buf    []byte
	prefix [offload.HeaderLen]byte // of the frame being written
	parts  [2]unix.Iovec           // prefix and frame
}

func newQueue(fd, header int) *Queue {
	return &Queue{fd: fd, header: header, buf: make([]byte, header+maxFrame)}
}

// FD returns the descriptor to poll; it stays the queue's own.
func (q *Queue) FD() int { return q.fd }

// Read returns the next frame, which is the caller's until the next Read. A frame without a packet says that
// the queue is empty for now.
func (q *Queue) Read() (Frame, error) {
	for {
		// Like all calls here it does not block, so Go's scheduler need not be told that it might.
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&q.buf[0])), uintptr(len(q.buf)))
		switch errno {
		case 0:
			return q.frame(q.buf[:n])
		case unix.EAGAIN:
			return Frame{}, nil
		case unix.EINTR:
			continue
		}
		return Frame{}, fmt.Errorf("read from the TUN: %w", named(errno))
	}
}

func (q *Queue) frame(b []byte) (Frame, error) {
	if q.header == 0 {
		return Frame{Packet: b}, nil
	}
	h, err := offload.DecodeHeader(b)
	if err != nil {
		return Frame{}, fmt.Errorf("read from the TUN: %w", err)
	}
	return Frame{Header: h, Packet: b[q.header:]}, nil
}

// Write hands the frame to the kernel, which takes it as received on the device. It does not keep f.
func (q *Queue) Write(f Frame) error {
	for {
		errno := q.write(f)
		switch {
		case errno == 0:
			return nil
		case errno == unix.EINTR:
			continue
		case errno == unix.EINVAL && f.Header.GSO != offload.GSONone:
			return ErrGSORejected
		}
		return named(errno)
	}
}

func (q *Queue) write(f Frame) unix.Errno {
	if len(f.Packet) == 0 {
		return unix.EINVAL
	}
	q.parts[1].Base = &f.Packet[0]
	q.parts[1].SetLen(len(f.Packet))
	first, n := &q.parts[1], uintptr(1)
	if q.header > 0 {
		f.Header.Encode(q.prefix[:])
		q.parts[0].Base = &q.prefix[0]
		q.parts[0].SetLen(q.header)
		first, n = &q.parts[0], 2
	}
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(first)), n)
	q.parts[1].Base = nil
	return errno
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
