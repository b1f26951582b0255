package udp

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// receiveSlots is how many messages one recvmmsg takes at most: sixteen measured better than 2, 4, 8, 32 and 64.
	receiveSlots = 16
	// slotSize holds the longest train the kernel delivers: it joins packets up to 65,535 bytes, headers
	// included. With a smaller buffer the rest would be lost.
	slotSize = 65536
)

// receiver takes trains from the kernel.
type receiver struct {
	fd       int
	messages []unix.Mmsghdr
	iovecs   []unix.Iovec
	names    []unix.RawSockaddrInet6
	control  []control
	slots    []byte // receiveSlots of slotSize
	received []Message
}

func newReceiver(fd int) receiver {
	r := receiver{
		fd:       fd,
		messages: make([]unix.Mmsghdr, receiveSlots),
		iovecs:   make([]unix.Iovec, receiveSlots),
		names:    make([]unix.RawSockaddrInet6, receiveSlots),
		control:  make([]control, receiveSlots),
		slots:    make([]byte, receiveSlots*slotSize),
		received: make([]Message, receiveSlots),
	}
	for i := range r.messages {
		r.iovecs[i].Base = &r.slots[i*slotSize]
		r.iovecs[i].SetLen(slotSize)
		hdr := &r.messages[i].Hdr
		hdr.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		hdr.Iov = &r.iovecs[i]
		hdr.SetIovlen(1)
		hdr.Control = (*byte)(unsafe.Pointer(&r.control[i]))
		r.prepare(i)
	}
	return r
}

// prepare sets what the kernel overwrites with every message.
func (r *receiver) prepare(i int) {
	hdr := &r.messages[i].Hdr
	hdr.Namelen = unix.SizeofSockaddrInet6
	hdr.SetControllen(int(unsafe.Sizeof(control{})))
}

// Receive returns what has arrived, nothing if nothing has. The messages are the caller's until the next call, and
// so is the memory behind each one's data up to its capacity. If they fill their slice to its capacity, there may
// be more.
func (r *receiver) Receive() ([]Message, error) {
	n, errno := recvmmsg(r.fd, r.messages)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return nil, nil
	default:
		return nil, fmt.Errorf("receive: %w", errno)
	}
	for i := range n {
		r.read(i)
		r.prepare(i)
	}
	return r.received[:n], nil
}

// read turns what the kernel wrote for message i into a Message.
func (r *receiver) read(i int) {
	hdr := &r.messages[i].Hdr
	length := int(r.messages[i].Len)
	m := &r.received[i]
	*m = Message{
		From:      addrPort(&r.names[i]),
		Data:      r.slots[i*slotSize:][:length:slotSize],
		Segment:   length,
		Truncated: hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0,
	}
	readControl(r.control[i].bytes(int(hdr.Controllen)), m)
}

// recvmmsg takes what has arrived without blocking, and returns how many messages, or why not even one.
func recvmmsg(fd int, messages []unix.Mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])),
		uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
