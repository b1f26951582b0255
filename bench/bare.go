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

// Bare is the system calls of a userspace tunnel and next to nothing else: frames go whole from a TUN into a UDP socket
// and back. Nobody looks at them, cuts or joins them or computes a checksum. What it reaches in bulk TCP, no daemon that
// moves packets between a TUN and a socket can be expected to exceed on this machine; in small packets one that joins
// them can. It understands nobody but itself and joins two nodes. argv is a program that calls RunBare with the arguments
// that follow.
func Bare(argv ...string) Rival {
	return Rival{"bare", "frames whole through a TUN and a UDP socket: the system calls of a userspace tunnel alone", func(ctx context.Context, o *overlay) error {
		if n := len(o.lab.Nodes); n != 2 {
			return fmt.Errorf("it joins two nodes, not %d", n)
		}
		return o.join(func(n *lab.Node, own netip.Prefix, peers []lab.Peer) (mtu int, err error) {
			err = o.startDaemon(n, append(slices.Clone(argv), n.Addr.String(), peers[0].Node.Addr.String()))
			if err == nil {
				err = o.awaitBare(ctx, n)
			}
			if err != nil {
				return 0, err
			}
			return n.RouteThrough(bareDevice, bareOverhead, own, peers)
		})
	}}
}

// awaitBare waits until the daemon that was started last has made its device.
func (o *overlay) awaitBare(ctx context.Context, n *lab.Node) error {
	p := o.daemons[len(o.daemons)-1]
	err := lab.Await(ctx, startTimeout, n.Name+": "+bareDevice, func() error {
		if p.Running() && !n.HasLink(bareDevice) {
			return errors.New("there is none")
		}
		return nil
	})
	if err == nil && !p.Running() {
		err = ended(p)
	}
	return err
}

const (
	bareDevice   = "bare0"
	barePort     = 8287
	bareOverhead = 28 // outer IPv4 and UDP headers, in bytes

	// A message is frames, one behind the other, cut by the kernel into datagrams of the underlay's MTU; each frame, with
	// the virtio header that it came with, follows a mark and its length, 4 bytes each.
	bareMark   = 0xba5ef4a3
	barePrefix = 8
	// longestBareFrame is that of a TUN: 64 KiB and the virtio header.
	longestBareFrame = 65536 + 10
	// longestMessage is the longest UDP payload over IPv4.
	longestMessage = 65507
	// bareQuantum is how many bytes one end reads in a row: a super-frame or many small frames.
	bareQuantum = 48 << 10
	// bareNice is its nice value, that of our daemon's workers.
	bareNice = -10
	// bareSpin is how long an end looks for more before it sleeps, as our daemon does.
	bareSpin = 200 * time.Microsecond
)

// bareEnd is a node's end of the bare tunnel.
type bareEnd struct {
	tun, socket int // descriptors

	out  []byte // what has been read from the TUN
	in   []byte // what has been received
	kept int    // bytes in it of a frame whose rest is still to come
}

// RunBare is an end of the bare tunnel in the node that it is called in, until the process is ended. Its arguments are
// the addresses of this node and of the other one.
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
	// Like our daemon it goes before the generators where it may: else it would not be the limit.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, bareNice)
	e := &bareEnd{
		out: make([]byte, bareQuantum+barePrefix+longestBareFrame),
		in:  make([]byte, barePrefix+longestBareFrame+longestMessage),
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
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
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
	if err := joinBareSocket(fd, own, peer); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// joinBareSocket connects the socket to the peer's, and has the kernel cut and join what passes.
func joinBareSocket(fd int, own, peer netip.Addr) error {
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
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, mtu-bareOverhead); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
}

// run moves frames until the device is gone or the kernel cannot poll.
func (e *bareEnd) run() error {
	fds := []unix.PollFd{{Fd: int32(e.tun), Events: unix.POLLIN}, {Fd: int32(e.socket), Events: unix.POLLIN}}
	for last := time.Now(); ; {
		out, in := e.outward(), e.inward()
		switch {
		case out || in:
			last = time.Now()
		case time.Since(last) < bareSpin:
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it cannot fail
		default:
			if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("poll: %w", err)
			}
			// So a TUN queue tells that its device was deleted (drivers/net/tun.c, tun_chr_poll).
			if fds[0].Revents&unix.POLLERR != 0 {
				return fmt.Errorf("%s is gone", bareDevice)
			}
		}
	}
}

// outward sends what is in the TUN, and reports whether there was any.
func (e *bareEnd) outward() bool {
	from, n := 0, 0 // e.out[from:n] is to be sent
	for n < bareQuantum {
		k, err := traffic.RawRead(e.tun, e.out[n+barePrefix:])
		if err != nil {
			break // empty, or gone, of which poll tells
		}
		binary.BigEndian.PutUint32(e.out[n:], bareMark)
		binary.BigEndian.PutUint32(e.out[n+4:], uint32(k))
		if n+barePrefix+k-from > longestMessage {
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
		// What a full buffer refuses is lost, as on a wire: the generators count it.
		_, _ = traffic.RawWrite(e.socket, message)
	}
}

// inward writes what has been received to the TUN, and reports whether there was any.
func (e *bareEnd) inward() bool {
	n, err := traffic.RawRead(e.socket, e.in[e.kept:])
	if err != nil {
		return false // nothing, or an ICMP error about an earlier message
	}
	b := e.in[:e.kept+n]
	if fresh := e.in[e.kept:][:n]; startsFrame(fresh) {
		b = fresh // the rest of what was kept is lost
	}
	e.kept = copy(e.in, unpack(b, func(frame []byte) {
		_, _ = traffic.RawWrite(e.tun, frame) // a frame that the kernel refuses is lost, as on a wire
	}))
	return true
}

func startsFrame(b []byte) bool {
	return len(b) >= barePrefix && binary.BigEndian.Uint32(b) == bareMark
}

// unpack gives emit every whole frame of b and returns the part of one that is left at the end: a message may arrive in
// two pieces. What is no frame is left out with all that follows.
func unpack(b []byte, emit func(frame []byte)) (rest []byte) {
	for len(b) >= barePrefix {
		n := binary.BigEndian.Uint32(b[4:])
		if !startsFrame(b) || n > longestBareFrame {
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
