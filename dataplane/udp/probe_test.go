package udp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
)

func TestProbe(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		res := probe(Config{Bind: netip.AddrPortFrom(netip.MustParseAddr(addr), 1)})
		for f, reason := range res.unavailable {
			if errors.Is(reason, unix.ENOPROTOOPT) {
				t.Skipf("NOT TESTED: kernel has no %s", f)
			}
			if reason != nil {
				t.Errorf("%s: %s: %v", addr, f, reason)
			}
		}
		t.Logf("%s: trains of %d datagrams", addr, res.segments)
	}
}

// TestProbeBrokenKernel simulates faults in the handling of trains that were seen in real kernels.
func TestProbeBrokenKernel(t *testing.T) {
	isTrain := func(m *unix.Mmsghdr) bool { return m.Hdr.Control != nil }
	data := func(m *unix.Mmsghdr) []byte { return unsafe.Slice(m.Hdr.Iov.Base, int(m.Hdr.Iov.Len)) }
	for name, c := range map[string]struct {
		fault func(m *unix.Mmsghdr) (drop bool, errno unix.Errno)
		want  string // part of the error; empty: no error
	}{
		"none": {func(m *unix.Mmsghdr) (bool, unix.Errno) { return false, 0 }, ""},
		"refused": {func(m *unix.Mmsghdr) (bool, unix.Errno) {
			if isTrain(m) {
				return false, unix.EIO
			}
			return false, 0
		}, "one by one"},
		"corrupted": {func(m *unix.Mmsghdr) (bool, unix.Errno) {
			if isTrain(m) {
				data(m)[len(data(m))-1] ^= 1
			}
			return false, 0
		}, "corrupted"},
		"lost":       {func(m *unix.Mmsghdr) (bool, unix.Errno) { return isTrain(m), 0 }, "0 of"},
		"no network": {func(m *unix.Mmsghdr) (bool, unix.Errno) { return true, 0 }, ""},
	} {
		st, err := newSelfTest(netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		real := st.sender.send
		st.sender.send = func(fd int, messages []unix.Mmsghdr) (int, unix.Errno) {
			drop, errno := c.fault(&messages[0])
			if errno != 0 || drop {
				return 1 - min(1, int(errno)), errno
			}
			return real(fd, messages[:1])
		}
		if name == "no network" {
			st.noLoopback = st.exchange(trainShape{1, 100, 100}) != nil
		}
		got := st.testGSO()
		if errors.Is(got, unix.ENOPROTOOPT) {
			t.Skip("NOT TESTED: kernel has no UDP_SEGMENT")
		}
		if (got == nil) != (c.want == "") || got != nil && !strings.Contains(got.Error(), c.want) {
			t.Errorf("%s: %v", name, got)
		}
		if err := st.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDisabledFeatures(t *testing.T) {
	g, err := OpenOffload(Config{
		Bind: freePort(t, "127.0.0.1"), Sockets: 2, Buffer: 10_000,
		NoGSO: true, NoGRO: true, NoSteering: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for f, reason := range g.Features() {
		if (reason != nil) != (f != feature.Buffers) {
			t.Errorf("%s: %v", f, reason)
		}
	}
}
