package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/deploy/lab"
	"weft/encap/checksum"
	"weft/encap/offload"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(leakCheck{m})) }

// leakCheck runs the tests and fails if they leak a file descriptor or goroutine.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	before := tunDescriptors()
	status := l.m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	if after := tunDescriptors(); after != before {
		fmt.Fprintf(os.Stderr, "%d TUN descriptors before the tests, %d after\n", before, after)
		status = max(status, 1)
	}
	return status
}

// tunDescriptors returns the number of open TUN descriptors of this process.
func tunDescriptors() (n int) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil && target == "/dev/net/tun" {
			n++
		}
	}
	return n
}

// openers are the two functions that open a device.
var openers = map[string]func(Config) (*Device, error){"portable": OpenPortable, "offload": OpenOffload}

// open creates a device with an address in its own network namespace.
func open(t *testing.T, how string, c Config) (*Device, *lab.NS) {
	t.Helper()
	lab.SkipWithoutTUN(t)
	ns, err := lab.NewNS("tun-" + how)
	must(t, err)
	t.Cleanup(func() { must(t, ns.Close()) })
	var d *Device
	must(t, ns.Do(func() error { d, err = openers[how](c); return err }))
	t.Cleanup(func() { must(t, d.Close()) })
	must(t, ns.AddAddr(d.Name(), netip.MustParsePrefix("10.9.0.1/24")))
	must(t, ns.Sysctl("ipv6/conf/"+d.Name()+"/disable_ipv6", "1")) // no unsolicited packets
	must(t, ns.SetUp(d.Name(), true))
	return d, ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// next waits for a frame on any queue and returns it with the index of the queue.
func next(t *testing.T, d *Device) (Frame, int) {
	t.Helper()
	var fds []unix.PollFd
	for _, q := range d.Queues() {
		fds = append(fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
	}
	if n, err := unix.Poll(fds, 5000); n == 0 || err != nil {
		t.Fatalf("no frame: %v", err)
	}
	for i, q := range d.Queues() {
		f, err := q.Read()
		must(t, err)
		if f.Packet != nil {
			return f, i
		}
	}
	t.Fatal("poll returned, but all queues are empty")
	return Frame{}, 0
}

func TestNetnsReadWrite(t *testing.T) {
	for how := range openers {
		t.Run(how, func(t *testing.T) {
			d, ns := open(t, how, Config{Name: "weft%d", Queues: 2, MTU: 1400})
			if d.Name() != "weft0" || len(d.Queues()) != 2 {
				t.Errorf("device %s with %d queues, want weft0 with 2", d.Name(), len(d.Queues()))
			}
			link, err := ns.Link(d.Name())
			if err != nil || link.MTU != 1400 {
				t.Errorf("%+v, %v", link, err)
			}
			for _, q := range d.Queues() {
				if f, err := q.Read(); f.Packet != nil || err != nil {
					t.Errorf("empty queue: %x, %v", f.Packet, err)
				}
			}
			// Outbound: a datagram sent by a socket is read from a queue, complete and with a valid
			// checksum.
			conn, err := ns.ListenUDP(netip.MustParseAddr("10.9.0.1"), 0)
			must(t, err)
			defer conn.Close()
			peer := &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 5000}
			_, err = conn.WriteTo([]byte("payload"), peer)
			must(t, err)
			f, _ := next(t, d)
			f.Packet = splitSingle(t, f)
			if !bytes.Equal(f.Packet[28:], []byte("payload")) || !validUDP(f.Packet) {
				t.Errorf("%+v %x", f.Header, f.Packet)
			}
			// Inbound: write the packet with source and destination swapped to each queue. The
			// kernel then sends the flow to that queue.
			reply := swapEndpoints(f.Packet)
			for i, q := range d.Queues() {
				must(t, q.Write(Frame{Packet: reply}))
				buf := make([]byte, 100)
				must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
				n, from, err := conn.ReadFrom(buf)
				if err != nil || string(buf[:n]) != "payload" || from.String() != "10.9.0.2:5000" {
					t.Errorf("%q from %v: %v", buf[:n], from, err)
				}
				_, err = conn.WriteTo([]byte("payload"), peer)
				must(t, err)
				if _, at := next(t, d); at != i {
					t.Errorf("written to queue %d, but the flow is read from queue %d", i, at)
				}
			}
		})
	}
}

// swapEndpoints swaps source and destination of a UDP packet. The checksums stay valid.
func swapEndpoints(pkt []byte) []byte {
	b := bytes.Clone(pkt)
	copy(b[12:], pkt[16:20])
	copy(b[16:], pkt[12:16])
	copy(b[20:], pkt[22:24])
	copy(b[22:], pkt[20:22])
	return b
}

// splitSingle returns the packet of a frame without GSO, with its checksum completed.
func splitSingle(t *testing.T, f Frame) []byte {
	t.Helper()
	s, err := offload.Split(f.Header, f.Packet)
	must(t, err)
	pkt := make([]byte, s.MaxLen())
	return pkt[:s.Next(pkt)]
}

func validUDP(pkt []byte) bool {
	return checksum.Sum(pkt[20:], checksum.Pseudo(pkt[12:20], 17, len(pkt)-20)) == 0xffff
}

func TestNetnsGSOFrames(t *testing.T) {
	d, ns := open(t, "offload", Config{Name: "weft%d", Queues: 1, MTU: 1400})
	if why := d.Features()[feature.USO]; why != nil {
		t.Skipf("NOT TESTED: UDP GSO frames: %v", why)
	}
	conn, err := ns.ListenUDP(netip.MustParseAddr("10.9.0.1"), 5000)
	must(t, err)
	defer conn.Close()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 100)
	}))
	must(t, err)
	payload := make([]byte, 950)
	for i := range payload {
		payload[i] = byte(i)
	}
	_, err = conn.WriteTo(payload, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 5000})
	must(t, err)
	f, _ := next(t, d)
	if f.Header.GSO != offload.GSOUDP || f.Header.SegmentSize != 100 || !bytes.Equal(f.Packet[28:], payload) {
		t.Fatalf("%+v, %d bytes", f.Header, len(f.Packet))
	}
	// Write it back as one GSO frame: the socket receives ten datagrams.
	back := swapEndpoints(f.Packet)
	must(t, d.Queues()[0].Write(Frame{Header: f.Header, Packet: back}))
	must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	for i := range 10 {
		buf := make([]byte, 200)
		n, err := conn.Read(buf)
		if want := payload[100*i : min(100*i+100, 950)]; err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
	bad := f.Header
	bad.SegmentSize = 1 // more segments than the kernel allows
	if err := d.Queues()[0].Write(Frame{Header: bad, Packet: back}); !errors.Is(err, ErrGSORejected) {
		t.Errorf("950 segments: %v", err)
	}
	if err := d.Queues()[0].Write(Frame{Packet: []byte{0x75, 0}}); err == nil || errors.Is(err, ErrGSORejected) {
		t.Errorf("packet with unknown IP version: %v", err)
	}
	if err := d.Queues()[0].Write(Frame{}); err == nil {
		t.Error("write of an empty frame succeeded")
	}
}

func TestNetnsFeatures(t *testing.T) {
	has := func(d *Device, want map[feature.Name]bool) {
		t.Helper()
		for f, why := range d.Features() {
			if (why == nil) != want[f] {
				t.Errorf("%s: %v", f, why)
			}
		}
	}
	full, _ := open(t, "offload", Config{Name: "full", Queues: 1})
	for f, why := range full.Features() {
		if why != nil {
			t.Skipf("NOT TESTED: kernel has no %s: %v", f, why)
		}
	}
	for _, c := range []struct {
		Config
		want map[feature.Name]bool
	}{
		{Config{}, map[feature.Name]bool{feature.VnetHeader: true, feature.TSO: true, feature.USO: true}},
		{Config{NoTSO: true}, map[feature.Name]bool{feature.VnetHeader: true, feature.USO: true}},
		{Config{NoUSO: true}, map[feature.Name]bool{feature.VnetHeader: true, feature.TSO: true}},
		{Config{NoTSO: true, NoUSO: true}, map[feature.Name]bool{feature.VnetHeader: true}},
	} {
		c.Name, c.Queues = "weft%d", 2
		d, err := OpenOffload(c.Config)
		must(t, err)
		has(d, c.want)
		must(t, d.Close())
	}
	portable, err := OpenPortable(Config{Name: "weft%d", Queues: 1})
	must(t, err)
	has(portable, nil)
	must(t, portable.Close())
}

func TestNetnsDownAndDeleted(t *testing.T) {
	for how := range openers {
		t.Run(how, func(t *testing.T) {
			d, ns := open(t, how, Config{Name: "weft%d", Queues: 2})
			q := d.Queues()[1]
			pkt := make([]byte, 20)
			pkt[0] = 0x45
			binary.BigEndian.PutUint16(pkt[2:], 20)
			must(t, ns.SetUp(d.Name(), false))
			if err := q.Write(Frame{Packet: pkt}); !errors.Is(err, ErrDown) {
				t.Errorf("write while down: %v", err)
			}
			if f, err := q.Read(); f.Packet != nil || err != nil {
				t.Errorf("read while down: %x, %v", f.Packet, err)
			}
			must(t, ns.DeleteLink(d.Name()))
			if _, err := q.Read(); !errors.Is(err, ErrGone) {
				t.Errorf("read after deletion: %v", err)
			}
			if err := q.Write(Frame{Packet: pkt}); !errors.Is(err, ErrGone) {
				t.Errorf("write after deletion: %v", err)
			}
			fds := []unix.PollFd{{Fd: int32(q.FD())}}
			if n, err := unix.Poll(fds, 1000); n != 1 || fds[0].Revents&unix.POLLERR == 0 {
				t.Errorf("poll after deletion: %d, %x, %v; want POLLERR", n, fds[0].Revents, err)
			}
		})
	}
}

func TestNetnsDropped(t *testing.T) {
	d, ns := open(t, "portable", Config{Name: "weft%d", Queues: 1})
	conn, err := ns.Dial("udp", netip.MustParseAddrPort("10.9.0.2:9"))
	must(t, err)
	defer conn.Close()
	const sent = 2000
	for range sent {
		_, err := conn.Write([]byte("x"))
		must(t, err)
	}
	var dropped uint64
	must(t, ns.Do(func() error { dropped, err = Dropped(d.Name()); return err }))
	read := uint64(0)
	for {
		f, err := d.Queues()[0].Read()
		must(t, err)
		if f.Packet == nil {
			break
		}
		read++
	}
	if dropped == 0 || dropped+read != sent {
		t.Errorf("%d dropped and %d read, sent %d", dropped, read, sent)
	}
	if _, err := Dropped("no-such-device"); err == nil {
		t.Error("Dropped of a missing device succeeded")
	}
}

func TestNetnsInvalidConfig(t *testing.T) {
	for how, open := range openers {
		if d, err := open(Config{Name: "a-name-of-20-letters", Queues: 1}); err == nil {
			t.Errorf("%s: long name opened as %s", how, d.Name())
			must(t, d.Close())
		}
		if d, err := open(Config{Name: "lo", Queues: 1}); err == nil {
			t.Errorf("%s: opened the loopback device", how)
			must(t, d.Close())
		}
		if d, err := open(Config{Name: "weft%d", Queues: 1, MTU: 1 << 20}); err == nil {
			t.Errorf("%s: invalid MTU accepted", how)
			must(t, d.Close())
		}
	}
}

// TestWrapNoVnetHeader checks that temporary errors are not taken for a missing kernel feature.
func TestWrapNoVnetHeader(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EINVAL: true, unix.ENOTTY: true, unix.EOPNOTSUPP: true, unix.ENOSYS: true,
		unix.EBADFD: false, unix.ENODEV: false, unix.EBUSY: false, unix.EMFILE: false,
		unix.EPERM: false, unix.ENOENT: false,
	} {
		got := wrapNoVnetHeader(fmt.Errorf("attach: %w", err))
		if errors.Is(got, ErrNoVnetHeader) != want || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

func TestNetnsMaxQueues(t *testing.T) {
	for how := range openers {
		t.Run(how, func(t *testing.T) { open(t, how, Config{Name: "weft%d", Queues: MaxQueues}) })
	}
}

func TestNetnsAttachExisting(t *testing.T) {
	for how, open := range openers {
		first, err := open(Config{Name: "weft%d", Queues: 1})
		must(t, err)
		second, err := open(Config{Name: first.Name(), Queues: 1})
		must(t, err)
		if second.Name() != first.Name() {
			t.Errorf("%s: attached to %s, got %s", how, first.Name(), second.Name())
		}
		must(t, first.Close())
		must(t, second.Close())
	}
}

func TestNetnsReadWriteAllocs(t *testing.T) {
	d, ns := open(t, "offload", Config{Name: "weft%d", Queues: 1})
	conn, err := ns.ListenUDP(netip.MustParseAddr("10.9.0.1"), 0)
	must(t, err)
	defer conn.Close()
	raw, err := conn.SyscallConn()
	must(t, err)
	q := d.Queues()[0]
	frames := 0
	to := &unix.SockaddrInet4{Addr: [4]byte{10, 9, 0, 2}, Port: 9}
	must(t, raw.Control(func(fd uintptr) {
		msg := []byte("x")
		if n := testing.AllocsPerRun(100, func() {
			if err := unix.Sendto(int(fd), msg, 0, to); err != nil {
				t.Error(err)
			}
			f, err := q.Read()
			if err != nil || f.Packet == nil {
				return
			}
			frames++
			if err := q.Write(f); err != nil { // to 10.9.0.2, which is not local: accepted and dropped
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	}))
	if frames == 0 {
		t.Error("no frames read")
	}
}

func TestOpenErrorNamesRemedy(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EACCES: "chmod 0666 /dev/net/tun", unix.EPERM: "--device=/dev/net/tun", unix.ENOENT: "modprobe tun",
		unix.ENODEV: "modprobe tun", unix.ENXIO: "modprobe tun", unix.EMFILE: "open /dev/net/tun: too many open files",
	} {
		if err := openError(errno); !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", errno, err, want)
		}
	}
}
