package udp

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxMessages is the maximum number of messages per sendmmsg (UIO_MAXIOV in
// include/uapi/linux/uio.h).
const maxMessages = 1024

// sender converts trains to messages and sends them. It keeps its position if the send buffer is
// full.
type sender struct {
	fd  int
	gso bool // a train may be sent as one message
	tos tosOption

	send func(fd int, messages []unix.Mmsghdr) (int, unix.Errno) // sendmmsg; replaced in tests
	now  func() time.Time

	messages []unix.Mmsghdr // loaded messages; capacity maxMessages
	parts    []part         // content of each message
	iovecs   []unix.Iovec   // one per message
	control  []control      // one per train
	next     int            // index of the first message not yet sent
	cursor   part           // train and first datagram to load next
}

// part is the content of a message: the datagrams [from, to) of a train.
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

// sendAll sends all trains, starting at the current position, and reports whether it sent them all.
func (s *sender) sendAll(t *trains, failed UndeliveredFunc) bool {
	for {
		if s.next == len(s.messages) && !s.loadMessages(t) {
			break
		}
		n, errno := s.send(s.fd, s.messages[s.next:])
		for range n {
			s.onSent(t)
		}
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			return false
		default: // the error is about the first message not sent
			s.onRefused(t, errno, failed)
		}
	}
	s.rewind(part{})
	return true
}

// rewind discards the loaded messages and sets the position to the given part.
func (s *sender) rewind(to part) {
	s.messages, s.parts, s.next, s.cursor = s.messages[:0], s.parts[:0], 0, to
}

// loadMessages converts as many trains as fit to messages, starting at the cursor, and reports
// whether there were any.
func (s *sender) loadMessages(t *trains) bool {
	s.rewind(s.cursor)
	for s.cursor.train < t.n {
		i := s.cursor.train
		next := &t.all[i]
		if s.cursor.from == 0 && s.asOneMessage(next) {
			if !s.add(next, part{i, 0, next.count}) {
				break
			}
		} else {
			for s.cursor.from < next.count &&
				s.add(next, part{i, s.cursor.from, s.cursor.from + 1}) {
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

// asOneMessage reports whether to send a train as one message.
func (s *sender) asOneMessage(t *train) bool {
	if !s.gso || t.gsoErrno != 0 {
		return false
	}
	until := t.key.To.gsoOffUntil.Load()
	return until == nil || s.now().After(*until)
}

// add appends one message. It returns false if there is no room.
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
	hdr.Name, hdr.Namelen = &t.key.To.rawAddr[0], t.key.To.rawAddrLen
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

// putControl writes the control messages of a part and returns their length. A single datagram gets
// no segment size: it needs none, and some stacks drop datagrams that have one.
func (s *sender) putControl(c *control, t *train, p part) (n int) {
	if p.to-p.from > 1 {
		n = c.putSegment(n, t.segment)
	}
	return s.tos.put(c, n, t.key.TOS)
}

// onSent counts the next message as sent.
func (s *sender) onSent(t *trains) {
	p := s.parts[s.next]
	s.next++
	tr := &t.all[p.train]
	tr.key.To.count(p.to-p.from, min(p.to*tr.segment, tr.used)-p.from*tr.segment)
	if tr.gsoErrno != 0 && p.from == 0 {
		// The kernel refused the train but not its first datagram: segmentation fails on this path.
		until := s.now().Add(gsoRetryAfter)
		tr.key.To.gsoOffUntil.Store(&until)
	}
}

// onRefused handles an error for the next message. A train is sent again as single datagrams: if
// the kernel refuses a message, it has sent no part of it. A single datagram is dropped.
func (s *sender) onRefused(t *trains, errno unix.Errno, failed UndeliveredFunc) {
	p := s.parts[s.next]
	tr := &t.all[p.train]
	if p.to-p.from > 1 && isGSOError(errno) {
		tr.gsoErrno = errno
		s.rewind(part{train: p.train})
		return
	}
	last := p.to
	if tr.gsoErrno == errno && errno != unix.EMSGSIZE {
		last = tr.count // same error without GSO: give up on the rest of the train, too
	}
	for i := p.from; i < last; i++ {
		failed(tr.key.To, tr.datagram(i), errno)
	}
	if last > p.to {
		s.rewind(part{train: p.train + 1})
		return
	}
	s.next++
}

// isGSOError reports whether the kernel may refuse a train with errno although it accepts the same
// datagrams one by one: EIO if the device has no checksum offload or the route uses IPsec, EINVAL
// and EMSGSIZE if a segment exceeds the path MTU or there are too many segments (net/ipv4/udp.c,
// udp_send_skb).
func isGSOError(errno unix.Errno) bool {
	switch errno {
	case unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EOPNOTSUPP:
		return true
	}
	return false
}

// sendmmsg sends messages without blocking, and returns the number sent, or the error for the first
// one.
func sendmmsg(fd int, messages []unix.Mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
