//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The stage is a veth pair. Inbound sends the packets of TCP flows in bulk into the near end; the
// kernel joins them (GRO) as they leave the far end, where the program joined takes them. Before
// inbound has removed the outer headers, no kernel can join them.

// stageNear returns the name of the end where packets enter the stage of a TUN device.
func stageNear(device string) string { return device + "-in" }

// stageFar returns the name of the other end.
func stageFar(device string) string { return device + "-join" }

const (
	// stageQueues is the number of queues for each CPU (STAGE_QUEUES in bpf/fastpath.c).
	stageQueues = 2
	// stageMTU is above the size of every packet (drivers/net/veth.c, ETH_MAX_MTU).
	stageMTU = 65535
	// addrGenModeNone keeps IPv6 addresses away (linux/if_link.h, IN6_ADDR_GEN_MODE_NONE).
	addrGenModeNone = 1
)

// openStage creates the stage of a TUN device, or finds that of an earlier process, and returns the
// indices of its ends.
func openStage(device string) (near, far int, err error) {
	if err := addStage(device); err != nil {
		return 0, 0, fmt.Errorf("%w: create veth pair %s: %w", ErrUnsupported, stageNear(device), err)
	}
	// A veth device hands packets to GRO only if the other one does not segment (veth_xmit).
	for _, set := range []struct {
		device  string
		command uint32
		value   uint32
	}{
		{stageNear(device), unix.ETHTOOL_STSO, 0},
		{stageNear(device), unix.ETHTOOL_SGSO, 0},
		{stageFar(device), unix.ETHTOOL_SGRO, 1},
	} {
		if _, err := ethtool(set.device, set.command, set.value); err != nil {
			return 0, 0, fmt.Errorf("%w: set offloads of %s: %w", ErrUnsupported, set.device, err)
		}
	}
	var index [2]int
	for i, name := range []string{stageNear(device), stageFar(device)} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return 0, 0, fmt.Errorf("find %s: %w", name, err)
		}
		err = netlink.LinkSetIP6AddrGenMode(l, addrGenModeNone)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return 0, 0, fmt.Errorf("disable IPv6 addresses of %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return 0, 0, fmt.Errorf("set %s up: %w", name, err)
		}
		index[i] = l.Attrs().Index
	}
	return index[0], index[1], nil
}

// addStage creates the pair unless it exists.
func addStage(device string) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	queues := cpus * stageQueues
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = stageNear(device), stageMTU
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU = stageFar(device), stageMTU
	pair.PeerNumTxQueues, pair.PeerNumRxQueues = uint32(queues), uint32(queues)
	if err := netlink.LinkAdd(pair); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// removeStage deletes the stage of a TUN device, if there is one.
func removeStage(device string) error {
	l, err := netlink.LinkByName(stageNear(device))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", stageNear(device), err)
	}
	return nil
}

// ethtool sets or reads an offload of a device in the calling thread's network namespace, and
// returns its value.
func ethtool(device string, command, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	request := [2]uint32{command, value} // struct ethtool_value
	var ifreq struct {                   // struct ifreq
		name [unix.IFNAMSIZ]byte
		data uintptr
		_    [16]byte
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], device)
	var pin runtime.Pinner
	pin.Pin(&request)
	defer pin.Unpin()
	ifreq.data = uintptr(unsafe.Pointer(&request))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL,
		uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return 0, errno
	}
	return request[1], nil
}
