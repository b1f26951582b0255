// Package tun opens the TUN device of the overlay and reads and writes frames on its queues.
//
// A Device has one Queue per worker. A queue is not safe for concurrent use; Close may be called by
// another goroutine once its owner has stopped. No call blocks: the owner polls FD together with
// its other descriptors.
package tun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap/offload"
)

// Errors of Read and Write, apart from other system call errors.
var (
	// ErrGone means that the device was deleted. It must be reopened.
	ErrGone = errors.New("TUN device was deleted")
	// ErrDown means that the device is administratively down. The queue works again when it is up.
	ErrDown = errors.New("TUN device is down")
	// ErrGSORejected means that the kernel rejected a GSO frame. Its segments can be written one by
	// one.
	ErrGSORejected = errors.New("kernel rejected the GSO frame")
)

// MaxQueues is the maximum number of queues per device: the kernel's limit of 256 (MAX_TAP_QUEUES
// in drivers/net/tun.c), less one that OpenPortable holds while it opens the others.
const MaxQueues = 255

// Config configures a TUN device.
type Config struct {
	Name   string // a name, or a pattern such as "flannel%d" that the kernel expands
	Queues int    // number of queues, 1 to MaxQueues
	MTU    int    // MTU in bytes; 0 means the kernel's default
	NoTSO  bool   // OpenOffload: disable TCP GSO frames
	NoUSO  bool   // OpenOffload: disable UDP GSO frames
}

// Frame is one frame read from or written to a queue: an inner packet, or a GSO frame described by
// Header. On a device of OpenPortable, Header is always zero.
type Frame struct {
	Header offload.Header
	Packet []byte
}

// Device is a TUN device. It exists until its last queue is closed, unless it is persistent.
type Device struct {
	name        string
	queues      []*Queue
	unavailable map[feature.Name]error
}

// Features returns all features of a TUN device. The value is nil if the feature is used, else the
// reason why not.
func (d *Device) Features() map[feature.Name]error {
	all := make(map[feature.Name]error, len(d.unavailable))
	for _, f := range []feature.Name{feature.VnetHeader, feature.TSO, feature.USO} {
		all[f] = d.unavailable[f]
	}
	return all
}

// Name returns the name of the device.
func (d *Device) Name() string { return d.name }

// Queues returns the queues. Each may be handed to a different goroutine.
func (d *Device) Queues() []*Queue { return d.queues }

// SetPersistent sets whether the device outlasts its last queue. Of a device that was deleted
// meanwhile nothing can outlast it, which is no error: its queues report the loss.
func (d *Device) SetPersistent(on bool) error {
	value := 0
	if on {
		value = 1
	}
	err := unix.IoctlSetInt(d.queues[0].fd, unix.TUNSETPERSIST, value)
	if err != nil && !errors.Is(err, unix.EBADFD) {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	return nil
}

// IsPersistent reports whether the named interface is a TUN device of this package that outlasts
// its queues. It attaches to the device for a moment.
func IsPersistent(name string) bool {
	if _, err := net.InterfaceByName(name); err != nil {
		return false
	}
	fd, _, err := attach(name, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	return err == nil && unix.IoctlIfreq(fd, unix.TUNGETIFF, req) == nil &&
		req.Uint16()&unix.IFF_PERSIST != 0
}

// Close closes all queues, which deletes the device unless it is persistent. The queues must not be
// in use.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// maxFrame is the maximum size of a frame in bytes: the IPv4 total length has 16 bits, and the
// default gso_max_size limits GSO frames of both families to less than 65,536.
const maxFrame = 65536

// Queue is one queue of a Device.
type Queue struct {
	fd         int
	headerLen  int // size of the virtio header before each frame
	buf        []byte
	vnetHeader [offload.HeaderLen]byte // of the frame being written
	iovecs     [2]unix.Iovec           // virtio header and packet
}

func newQueue(fd, headerLen int) *Queue {
	return &Queue{fd: fd, headerLen: headerLen, buf: make([]byte, headerLen+maxFrame)}
}

// FD returns the descriptor to poll. The queue keeps ownership.
func (q *Queue) FD() int { return q.fd }

// Read returns the next frame, which is valid until the next Read. It returns a Frame with a nil
// Packet if the queue is empty.
func (q *Queue) Read() (Frame, error) {
	for {
		// Never blocks, so the Go scheduler need not be notified: RawSyscall rather than Syscall.
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd),
			uintptr(unsafe.Pointer(&q.buf[0])), uintptr(len(q.buf)))
		switch errno {
		case 0:
			return q.frame(q.buf[:n])
		case unix.EAGAIN:
			return Frame{}, nil
		case unix.EINTR:
			continue
		}
		return Frame{}, fmt.Errorf("read TUN device: %w", deviceError(errno))
	}
}

func (q *Queue) frame(b []byte) (Frame, error) {
	if q.headerLen == 0 {
		return Frame{Packet: b}, nil
	}
	h, err := offload.DecodeHeader(b)
	if err != nil {
		return Frame{}, fmt.Errorf("read TUN device: %w", err)
	}
	return Frame{Header: h, Packet: b[q.headerLen:]}, nil
}

// Write writes a frame, which the kernel treats as received on the device. It does not retain f.
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
		return deviceError(errno)
	}
}

func (q *Queue) write(f Frame) unix.Errno {
	if len(f.Packet) == 0 {
		return unix.EINVAL
	}
	q.iovecs[1].Base = &f.Packet[0]
	q.iovecs[1].SetLen(len(f.Packet))
	first, n := &q.iovecs[1], uintptr(1)
	if q.headerLen > 0 {
		f.Header.Encode(q.vnetHeader[:])
		q.iovecs[0].Base = &q.vnetHeader[0]
		q.iovecs[0].SetLen(q.headerLen)
		first, n = &q.iovecs[0], 2
	}
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd),
		uintptr(unsafe.Pointer(first)), n)
	q.iovecs[1].Base = nil
	return errno
}

// Close closes the queue's descriptor.
func (q *Queue) Close() error {
	if err := unix.Close(q.fd); err != nil {
		return fmt.Errorf("close TUN queue: %w", err)
	}
	return nil
}

// deviceError maps errno values that need special handling to the errors of this package.
func deviceError(err error) error {
	switch err {
	case unix.EBADFD: // drivers/net/tun.c, tun_get without a device
		return ErrGone
	case unix.EIO: // drivers/net/tun.c, tun_get_user: the device is not IFF_UP
		return ErrDown
	}
	return err
}

// Dropped returns the number of packets that the kernel dropped because a queue of the named device
// was full, in the calling thread's network namespace. Senders do not get an error for these.
func Dropped(name string) (uint64, error) {
	table, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return 0, fmt.Errorf("read device counters: %w", err)
	}
	for line := range strings.Lines(string(table)) {
		dev, counters, _ := strings.Cut(line, ":")
		if strings.TrimSpace(dev) != name {
			continue
		}
		// Column of the transmit drops: 8 receive columns, then bytes, packets, errs, drop
		// (net/core/net-procfs.c, dev_seq_printf_stats).
		const transmitDrop = 11
		if f := strings.Fields(counters); len(f) > transmitDrop {
			return strconv.ParseUint(f[transmitDrop], 10, 64)
		}
	}
	return 0, fmt.Errorf("no counters for device %s", name)
}
