package probe

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const testNonce nonce = 0x1122334455667788

// slowChecksum is the definition of RFC 1071.
func slowChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 + uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestEchoParsed(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		msg := slices.Repeat([]byte{0xff}, 64)
		testNonce.putEcho(msg, 42, v6)
		if !v6 && slowChecksum(msg) != 0 {
			t.Errorf("checksum of %x", msg)
		}
		if n, ok := testNonce.parseQuoted(msg, v6); n != 42 || !ok {
			t.Errorf("quoted: %d, %t", n, ok)
		}
		if _, ok := testNonce.parseReply(msg, v6); ok {
			t.Error("a request counts as a reply")
		}
		msg[0] = echoReply4
		if v6 {
			msg[0] = echoReply6
		}
		if n, ok := testNonce.parseReply(msg, v6); n != 42 || !ok {
			t.Errorf("reply: %d, %t", n, ok)
		}
		if _, ok := testNonce.parseReply(msg[:messageLen-1], v6); ok {
			t.Error("a truncated reply is accepted")
		}
		if _, ok := (testNonce + 1).parseReply(msg, v6); ok {
			t.Error("the reply to another process is accepted")
		}
	}
}

// errorControl returns the control message of an entry of the error queue.
func errorControl(errno unix.Errno, origin byte, mtu uint32) []byte {
	b := make([]byte, unix.CmsgSpace(recvErrLen))
	if unix.SizeofCmsghdr == 16 {
		binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(recvErrLen)))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(unix.CmsgLen(recvErrLen)))
	}
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr-8:], unix.SOL_IP)
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr-4:], unix.IP_RECVERR)
	data := b[unix.CmsgLen(0):]
	binary.NativeEndian.PutUint32(data, uint32(errno))
	data[4] = origin
	binary.NativeEndian.PutUint32(data[8:], mtu)
	return b
}

func TestParseFailure(t *testing.T) {
	s := &socket{nonce: testNonce}
	request := make([]byte, 64)
	testNonce.putEcho(request, 7, false)
	for _, c := range []struct {
		name    string
		quoted  []byte
		control []byte
		want    failure
		ok      bool
	}{
		{"router", request[:28], errorControl(unix.EMSGSIZE, originICMP, 1372), failure{7, unix.EMSGSIZE, 1372}, true},
		{"host", request, errorControl(unix.EHOSTUNREACH, originICMP, 9), failure{7, unix.EHOSTUNREACH, 0}, true},
		{"kernel", nil, errorControl(unix.EMSGSIZE, originLocal, 1430), failure{0, unix.EMSGSIZE, 1430}, true},
		{"echo of another program", request[1:], errorControl(unix.EMSGSIZE, originICMP, 1), failure{}, false},
		{"time stamp", request, errorControl(0, 4, 0), failure{}, false},
		{"no control message", request, nil, failure{}, false},
	} {
		got, ok := s.parseFailure(c.quoted, c.control)
		if ok != c.ok || ok && (got.number != c.want.number || got.mtu != c.want.mtu || !errors.Is(got.err, c.want.err)) {
			t.Errorf("%s: %+v, %t; want %+v, %t", c.name, got, ok, c.want, c.ok)
		}
	}
}

// FuzzReceive parses bytes as everything that arrives from the network or the kernel.
func FuzzReceive(f *testing.F) {
	request := make([]byte, 64)
	testNonce.putEcho(request, 7, false)
	f.Add(append([]byte{0x45, 19: 0}, request...), errorControl(unix.EMSGSIZE, originICMP, 1400), false)
	f.Add(request, errorControl(unix.EMSGSIZE, originLocal, 1400), true)
	f.Fuzz(func(t *testing.T, packet, control []byte, v6 bool) {
		s := &socket{nonce: testNonce, v6: v6}
		if msg, ok := payload4(packet); ok && len(msg) > len(packet)-ipv4HeaderLen {
			t.Errorf("payload of %d bytes in a packet of %d", len(msg), len(packet))
		}
		if _, ok := testNonce.parseReply(packet, v6); ok &&
			binary.BigEndian.Uint64(packet[8:]) != uint64(testNonce) {
			t.Error("accepted without the nonce")
		}
		if failed, ok := s.parseFailure(packet, control); ok && failed.err == nil {
			t.Error("a failure without an error")
		}
		arrival(control)
	})
}
