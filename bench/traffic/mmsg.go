package traffic

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpBatch is the number of datagrams per system call of the generators. Larger batches gained
// nothing on two CPUs, and longer bursts overrun queues that ordinary senders do not.
const udpBatch = 32

// mmsghdr is struct mmsghdr of recvmmsg(2); the compiler pads it as C does.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// batch is a set of messages with their buffers, for one sendmmsg or recvmmsg at a time.
type batch struct {
	messages []mmsghdr
	iovecs   []unix.Iovec
	payloads [][]byte
}

// newBatch returns n messages of the given payload size.
func newBatch(n, size int) *batch {
	b := &batch{messages: make([]mmsghdr, n), iovecs: make([]unix.Iovec, n),
		payloads: make([][]byte, n)}
	for i := range n {
		b.payloads[i] = make([]byte, size)
		b.iovecs[i].Base = &b.payloads[i][0]
		b.iovecs[i].SetLen(size)
		b.messages[i].header.Iov = &b.iovecs[i]
		b.messages[i].header.SetIovlen(1)
	}
	return b
}

// setSource sets the IPv4 source address of message i (IP_PKTINFO).
func (b *batch) setSource(i int, source [4]byte) {
	control := make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&control[unix.CmsgLen(0)]))
	info.Spec_dst = source
	b.messages[i].header.Control = &control[0]
	b.messages[i].header.SetControllen(len(control))
}

// setDestination sets the IPv4 destination of message i.
func (b *batch) setDestination(i int, to netip.AddrPort) {
	raw := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&raw.Port))[:], to.Port())
	b.messages[i].header.Name = (*byte)(unsafe.Pointer(raw))
	b.messages[i].header.Namelen = unix.SizeofSockaddrInet4
}

// send sends the first n messages and returns how many the kernel accepted.
func (b *batch) send(fd, n int) (int, error) { return b.call(unix.SYS_SENDMMSG, fd, n, 0) }

// receive waits for a message and returns the number received, at most the size of the batch.
func (b *batch) receive(fd int) (int, error) {
	return b.call(unix.SYS_RECVMMSG, fd, len(b.messages), unix.MSG_WAITFORONE)
}

func (b *batch) call(number uintptr, fd, n, flags int) (int, error) {
	done, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[0])),
		uintptr(n), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(done), nil
}
