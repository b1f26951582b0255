package conntest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ctrl/doctor"
)

// Pod is a network namespace with an address of a node's subnet. It is connected to the bridge that
// has the subnet's gateway, as pods are, or with a link and a route of its own while no pod has run
// on the node and there is no bridge. The kernel removes it with the process.
type Pod struct {
	Addrs []netip.Addr // one per family
	ns    *os.File
	link  string // the host's end
}

// podDevice is the device of a pod.
const podDevice = "eth0"

// NewPod creates a pod in the subnets of this node, one per family, with an MTU in bytes. It needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN. The pod has the highest address of each subnet that does not
// answer: the address plugins give away the lowest first.
func NewPod(ctx context.Context, subnets []netip.Prefix, mtu int) (*Pod, error) {
	p := &Pod{link: fmt.Sprintf("weft%x", os.Getpid())}
	for _, s := range subnets {
		a, err := freeAddr(ctx, s)
		if err != nil {
			return nil, err
		}
		p.Addrs = append(p.Addrs, a)
	}
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			p.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create a network namespace: %w", err)
	}
	if err := p.connect(subnets, mtu); err != nil {
		return nil, errors.Join(fmt.Errorf("connect the pod: %w", err), p.Close())
	}
	return p, nil
}

// Do runs f inside the pod, on a thread of its own that is discarded afterwards. Sockets that f
// opens stay in the pod; goroutines that it starts do not run in it.
func (p *Pod) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the pod: %w", err)
		}
		return f()
	})
}

// Close removes the pod.
func (p *Pod) Close() error {
	link, err := netlink.LinkByName(p.link)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		err = nil
	}
	return errors.Join(err, p.ns.Close())
}

// onThread runs f on a thread that f may change in any way, since it is never used again.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked, so the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// addressTries bounds the search for a free address: so many tests may run on a node.
const addressTries = 16

// freeAddr returns the highest address of a subnet that does not answer an echo.
func freeAddr(ctx context.Context, subnet netip.Prefix) (netip.Addr, error) {
	a := lastAddr(subnet)
	for range addressTries {
		if a = a.Prev(); !subnet.Contains(a) || a == subnet.Masked().Addr() {
			break
		}
		if doctor.Ping(ctx, a, doctor.EchoSize, 50*time.Millisecond).Received == 0 {
			return a, ctx.Err()
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address at the end of %s for a pod", subnet)
}

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// connect links the pod to the host and sets addresses and routes.
func (p *Pod) connect(subnets []netip.Prefix, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.link, mtu
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: podDevice,
		PeerNamespace: netlink.NsFd(p.ns.Fd()), PeerMTU: uint32(mtu)})
	if err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	host, err := netlink.LinkByName(p.link)
	if err != nil {
		return err
	}
	bridge, gateways, err := findBridge(subnets)
	if err != nil {
		return err
	}
	if bridge != nil {
		if err := netlink.LinkSetMaster(host, bridge); err != nil {
			return fmt.Errorf("add a port to %s: %w", bridge.Attrs().Name, err)
		}
	} else {
		gateways = nil
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return err
	}
	return p.address(host, subnets, gateways)
}

// findBridge returns the bridge that has an address of each subnet, and these addresses; nil if
// there is none.
func findBridge(subnets []netip.Prefix) (netlink.Link, []netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		var gateways []netip.Addr
		for _, s := range subnets {
			for _, have := range addrs {
				a, _ := netip.AddrFromSlice(have.IP)
				if s.Contains(a.Unmap()) {
					gateways = append(gateways, a.Unmap())
					break
				}
			}
		}
		if len(gateways) == len(subnets) {
			return l, gateways, nil
		}
	}
	return nil, nil, nil
}

// address sets the pod's addresses and routes, and without gateways the host's routes to the pod.
func (p *Pod) address(host netlink.Link, subnets []netip.Prefix, gateways []netip.Addr) error {
	var mac net.HardwareAddr
	err := p.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		device, err := netlink.LinkByName(podDevice)
		if err != nil {
			return err
		}
		mac = device.Attrs().HardwareAddr
		if err := netlink.LinkSetUp(device); err != nil {
			return fmt.Errorf("set %s up: %w", podDevice, err)
		}
		for i, a := range p.Addrs {
			bits, via := a.BitLen(), linkGateway(a)
			if gateways != nil {
				bits, via = subnets[i].Bits(), gateways[i]
			} else if err := addNeighbour(device, via, host.Attrs().HardwareAddr); err != nil {
				return err
			}
			if err := addDefault(device, netip.PrefixFrom(a, bits), via); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || gateways != nil {
		return err
	}
	for _, a := range p.Addrs {
		if err := addNeighbour(host, a, mac); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: host.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())),
			Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add a route to %s: %w", a, err)
		}
	}
	return nil
}

// linkGateway returns the address that stands for the host in a pod with a link of its own. No
// device has it: the neighbour entry alone matters.
func linkGateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{169, 254, 1, 1})
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
}

// addNeighbour adds a permanent neighbour entry.
func addNeighbour(device netlink.Link, a netip.Addr, mac net.HardwareAddr) error {
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: device.Attrs().Index, IP: a.AsSlice(),
		HardwareAddr: mac, State: unix.NUD_PERMANENT})
	if err != nil {
		return fmt.Errorf("add neighbour %s: %w", a, err)
	}
	return nil
}

// addDefault adds an address and a default route.
func addDefault(device netlink.Link, address netip.Prefix, via netip.Addr) error {
	err := netlink.AddrAdd(device, &netlink.Addr{IPNet: ipNet(address), Flags: unix.IFA_F_NODAD})
	if err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if via.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: device.Attrs().Index, Dst: ipNet(all),
		Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
	if err != nil {
		return fmt.Errorf("add a default route via %s: %w", via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
