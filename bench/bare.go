package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"weft/bench/traffic"
	"weft/deploy/lab"
)

// Bare returns the system calls of a userspace tunnel as a target: frames are copied whole from a
// TUN device to a UDP socket and back, without being parsed, split, merged or checksummed. Its bulk
// TCP rate is an upper bound for daemons that copy packets between a TUN device and a socket on
// this machine. For small packets it is not: a daemon may merge them. It connects two nodes and is
// compatible with no other program. argv is a program that calls [RunBare] with the arguments
// appended to it.
func Bare(argv ...string) Target {
	const description = "frames copied whole between a TUN device and a UDP socket:" +
		" only the system calls of a userspace tunnel"
	return newTarget("bare", description, func(ctx context.Context, o *overlay) error {
		if n := len(o.lab.Nodes); n != pairNodes {
			return fmt.Errorf("bare connects two nodes, not %d", n)
		}
		return o.connect(func(n *lab.Node, own netip.Prefix,
			peers []lab.Peer) (mtu int, err error) {
			err = o.startDaemon(n, append(slices.Clone(argv), n.Addr.String(),
				peers[0].Node.Addr.String()))
			if err == nil {
				err = o.awaitBare(ctx, n)
			}
			if err != nil {
				return 0, err
			}
			return n.RouteThrough(bareDevice, bareOverhead, own, peers)
		})
	})
}

// awaitBare waits until the daemon that was started last has created its device.
func (o *overlay) awaitBare(ctx context.Context, n *lab.Node) error {
	p := o.daemons[len(o.daemons)-1]
	err := lab.Await(ctx, startTimeout, n.Name+": "+bareDevice, func() error {
		if p.Running() && !n.HasLink(bareDevice) {
			return errors.New("no such device")
		}
		return nil
	})
	if err == nil && !p.Running() {
		err = exitError(p)
	}
	return err
}

const (
	bareDevice   = "bare0"
	barePort     = 8287
	bareOverhead = 28 // outer IPv4 and UDP headers, in bytes

	// A message is a sequence of frames, which the kernel segments into datagrams of the underlay's
	// MTU. Each frame starts with its virtio header and is preceded by a magic number and its
	// length, 4 bytes each.
	bareMagic  = 0xba5ef4a3
	barePrefix = 8
	// maxBareFrame is the longest frame of a TUN device: 64 KiB and the virtio header.
	maxBareFrame = 65536 + 10
	// maxMessage is the longest UDP payload over IPv4.
	maxMessage = 65507
	// bareQuantum is the number of bytes read from the TUN before they are sent: a GSO frame or
	// many small frames.
	bareQuantum = 48 << 10
	// bareNice is the nice value of weftd's workers.
	bareNice = -10
	// bareSpin is the time without packets until an end blocks, as in weftd.
	bareSpin = 200 * time.Microsecond
)

// bareEnd is one end of the bare tunnel.
type bareEnd struct {
	tun, socket int // descriptors

	out     []byte // read from the TUN
	in      []byte // received
	partial int    // bytes at the start of in that belong to an incomplete frame
}

// RunBare runs an end of the bare tunnel in the current network namespace until the process is
// killed. Its arguments are the addresses of this node and of the other one.
func RunBare(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%q: want the addresses of this node and of the other one", args)
	}
	own, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	peer, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Higher priority than the generators, as weftd, if permitted: otherwise bare would not be an
	// upper bound.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, bareNice)
	e := &bareEnd{
		out: make([]byte, bareQuantum+barePrefix+maxBareFrame),
		in:  make([]byte, barePrefix+maxBareFrame+maxMessage),
	}
	if e.socket, err = openBareSocket(own, peer); err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(e.socket)
	if e.tun, err = openBareTUN(); err != nil {
		return fmt.Errorf("open %s: %w", bareDevice, err)
	}
	defer unix.Close(e.tun)
	return e.run()
}

func openBareTUN() (int, error) {
	request, err := unix.NewIfreq(bareDevice)
	if err != nil {
		return -1, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD,
			unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func openBareSocket(own, peer netip.Addr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := connectBareSocket(fd, own, peer); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// connectBareSocket connects the socket to the peer and enables segmentation (GSO) and GRO.
func connectBareSocket(fd int, own, peer netip.Addr) error {
	if err := unix.Bind(fd, traffic.Sockaddr(netip.AddrPortFrom(own, barePort))); err != nil {
		return err
	}
	if err := unix.Connect(fd, traffic.Sockaddr(netip.AddrPortFrom(peer, barePort))); err != nil {
		return err
	}
	if err := traffic.RaiseBuffers(fd); err != nil {
		return err
	}
	mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT,
		mtu-bareOverhead); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
}

// run copies frames until the device is deleted or poll fails.
func (e *bareEnd) run() error {
	fds := []unix.PollFd{{Fd: int32(e.tun), Events: unix.POLLIN},
		{Fd: int32(e.socket), Events: unix.POLLIN}}
	for last := time.Now(); ; {
		out, in := e.copyOut(), e.copyIn()
		switch {
		case out || in:
			last = time.Now()
		case time.Since(last) < bareSpin:
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it cannot fail
		default:
			if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("poll: %w", err)
			}
			// A TUN queue reports POLLERR after its device was deleted (drivers/net/tun.c,
			// tun_chr_poll).
			if fds[0].Revents&unix.POLLERR != 0 {
				return fmt.Errorf("%s was deleted", bareDevice)
			}
		}
	}
}

// copyOut sends the frames that are in the TUN, and reports whether there were any.
func (e *bareEnd) copyOut() bool {
	from, n := 0, 0 // e.out[from:n] is not sent yet
	for n < bareQuantum {
		k, err := traffic.RawRead(e.tun, e.out[n+barePrefix:])
		if err != nil {
			break // empty, or deleted, which poll reports
		}
		binary.BigEndian.PutUint32(e.out[n:], bareMagic)
		binary.BigEndian.PutUint32(e.out[n+4:], uint32(k))
		if n+barePrefix+k-from > maxMessage {
			e.send(e.out[from:n])
			from = n
		}
		n += barePrefix + k
	}
	e.send(e.out[from:n])
	return n > 0
}

func (e *bareEnd) send(message []byte) {
	if len(message) > 0 {
		// A message that does not fit into the socket buffer is lost; the generators count it.
		_, _ = traffic.RawWrite(e.socket, message)
	}
}

// copyIn writes received frames to the TUN, and reports whether there were any.
func (e *bareEnd) copyIn() bool {
	n, err := traffic.RawRead(e.socket, e.in[e.partial:])
	if err != nil {
		return false // empty, or an ICMP error for an earlier message
	}
	b := e.in[:e.partial+n]
	if fresh := e.in[e.partial:][:n]; startsFrame(fresh) {
		b = fresh // the rest of the partial frame is lost
	}
	e.partial = copy(e.in, unpack(b, func(frame []byte) {
		_, _ = traffic.RawWrite(e.tun, frame) // a frame that the kernel rejects is lost
	}))
	return true
}

func startsFrame(b []byte) bool {
	return len(b) >= barePrefix && binary.BigEndian.Uint32(b) == bareMagic
}

// unpack calls emit for every complete frame in b and returns the incomplete frame at its end: a
// message may arrive in two pieces. If a frame has no magic number or is too long, the rest of b is
// discarded.
func unpack(b []byte, emit func(frame []byte)) (rest []byte) {
	for len(b) >= barePrefix {
		n := binary.BigEndian.Uint32(b[4:])
		if !startsFrame(b) || n > maxBareFrame {
			return nil
		}
		end := barePrefix + int(n)
		if end > len(b) {
			return b
		}
		emit(b[barePrefix:end])
		b = b[end:]
	}
	return b
}
