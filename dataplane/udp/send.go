package udp

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxMessages is how many messages one sendmmsg takes at most (UIO_MAXIOV of include/uapi/linux/uio.h).
const maxMessages = 1024

// sender turns trains into messages and gives them to the kernel. It remembers how far it got, so that a full
// kernel buffer only interrupts it.
type sender struct {
	fd  int
	gso bool // trains may be messages
	tos tosOption

	send func(fd int, messages []unix.Mmsghdr) (int, unix.Errno) // sendmmsg, for tests to script
	now  func() time.Time

	messages []unix.Mmsghdr // those loaded; room for maxMessages
	parts    []part         // what each of them carries
	iovecs   []unix.Iovec   // of each
	control  []control      // of each train
	next     int            // the first message not yet sent
	cursor   part           // what is to be loaded next: train and its datagram from
}

// part is what a message carries: the datagrams from..to of a train.
type part struct {
	train, from, to int
}

func newSender(fd int, v6, gso bool) sender {
	return sender{
		fd:       fd,
		gso:      gso,
		tos:      newTOSOption(v6),
		send:     sendmmsg,
		now:      time.Now,
		messages: make([]unix.Mmsghdr, 0, maxMessages),
		parts:    make([]part, 0, maxMessages),
		iovecs:   make([]unix.Iovec, maxMessages),
		control:  make([]control, maxTrains),
	}
}

// run sends all trains from where it was interrupted on, and reports whether all have gone.
func (s *sender) run(t *trains, failed UndeliveredFunc) bool {
	for {
		if s.next == len(s.messages) && !s.load(t) {
			break
		}
		n, errno := s.send(s.fd, s.messages[s.next:])
		for range n {
			s.delivered(t)
		}
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			return false
		default: // it is the first of those not taken that was refused
			s.refused(t, errno, failed)
		}
	}
	s.rewind(part{})
	return true
}

// rewind forgets the messages loaded, to go on from the part given.
func (s *sender) rewind(to part) {
	s.messages, s.parts, s.next, s.cursor = s.messages[:0], s.parts[:0], 0, to
}

// load turns trains from the cursor on into messages, as many as fit, and reports whether there were any.
func (s *sender) load(t *trains) bool {
	s.rewind(s.cursor)
	for s.cursor.train < t.n {
		i := s.cursor.train
		next := &t.all[i]
		if s.cursor.from == 0 && s.whole(next) {
			if !s.add(next, part{i, 0, next.count}) {
				break
			}
		} else {
			for s.cursor.from < next.count && s.add(next, part{i, s.cursor.from, s.cursor.from + 1}) {
				s.cursor.from++
			}
			if s.cursor.from < next.count {
				break
			}
		}
		s.cursor = part{train: i + 1}
	}
	return len(s.messages) > 0
}

// whole reports whether a train goes out as one message.
func (s *sender) whole(t *train) bool {
	if !s.gso || t.refusedBy != 0 {
		return false
	}
	until := t.lane.To.plain.Load()
	return until == nil || s.now().After(*until)
}

// add appends one message, if there is room.
func (s *sender) add(t *train, p part) bool {
	i := len(s.messages)
	if i == cap(s.messages) {
		return false
	}
	from, to := p.from*t.segment, min(p.to*t.segment, t.used)
	s.iovecs[i].Base = &t.buf[from]
	s.iovecs[i].SetLen(to - from)
	s.messages = s.messages[:i+1]
	s.parts = append(s.parts, p)
	hdr := &s.messages[i].Hdr
	hdr.Name, hdr.Namelen = &t.lane.To.name[0], t.lane.To.nameLen
	hdr.Iov = &s.iovecs[i]
	hdr.SetIovlen(1)
	hdr.Control = nil
	size := s.putControl(&s.control[p.train], t, p)
	hdr.SetControllen(size)
	if size > 0 {
		hdr.Control = &s.control[p.train].bytes(size)[0]
	}
	return true
}

// putControl writes the control messages of a part and returns their length. A datagram alone gets no segment size:
// it needs none, and some stacks lose those that have one.
func (s *sender) putControl(c *control, t *train, p part) (n int) {
	if p.to-p.from > 1 {
		n = c.putSegment(n, t.segment)
	}
	return s.tos.put(c, n, t.lane.TOS)
}

// delivered counts the next message as sent.
func (s *sender) delivered(t *trains) {
	p := s.parts[s.next]
	s.next++
	d := &t.all[p.train]
	d.lane.To.sent(p.to-p.from, min(p.to*d.segment, d.used)-p.from*d.segment)
	if d.refusedBy != 0 && p.from == 0 {
		// The train was refused, and its first datagram alone was not: it is the cutting that fails there.
		until := s.now().Add(plainAge)
		d.lane.To.plain.Store(&until)
	}
}

// refused handles the next message, which the kernel did not take. A train goes out once more, one by one: what
// was refused was not sent in part. A datagram is given up.
func (s *sender) refused(t *trains, errno unix.Errno, failed UndeliveredFunc) {
	p := s.parts[s.next]
	d := &t.all[p.train]
	if p.to-p.from > 1 && mayBeGSO(errno) {
		d.refusedBy = errno
		s.rewind(part{train: p.train})
		return
	}
	last := p.to
	if d.refusedBy == errno && errno != unix.EMSGSIZE {
		last = d.count // alone they are refused for the same reason: the rest of the train would be, too
	}
	for i := p.from; i < last; i++ {
		failed(d.lane.To, d.datagram(i), errno)
	}
	if last > p.to {
		s.rewind(part{train: p.train + 1})
		return
	}
	s.next++
}

// mayBeGSO reports whether a train may be refused with errno although its datagrams one by one are not: EIO where
// the device has no checksum offload or IPsec takes the route, EINVAL and EMSGSIZE for a segment that is longer than
// the path carries, or more segments than the kernel allows (net/ipv4/udp.c, udp_send_skb).
func mayBeGSO(errno unix.Errno) bool {
	switch errno {
	case unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EOPNOTSUPP:
		return true
	}
	return false
}

// sendmmsg gives messages to the kernel without blocking, and returns how many it took, or why not even the first.
func sendmmsg(fd int, messages []unix.Mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])),
		uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
