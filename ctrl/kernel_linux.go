package ctrl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel is the only door to netlink. It belongs to the network namespace of the thread that opened it. Safe for
// concurrent use.
type Kernel struct {
	h *netlink.Handle
}

// netlinkTimeout bounds one exchange with the kernel, which answers at once unless its lock is held for long.
const netlinkTimeout = 10 * time.Second

// OpenKernel connects to the network namespace of the calling thread.
func OpenKernel() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return &Kernel{h: h}, nil
}

// Close ends the connection. A Watch is not ended by it.
func (k *Kernel) Close() { k.h.Close() }

// again calls f until the kernel gave a whole answer: a dump that a change interrupted, and a call that a signal
// interrupted, are asked for again. Go's own preemption signals make the latter ordinary.
func again(f func() error) error {
	const tries = 10
	var err error
	for range tries {
		err = f()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return err
}

// dump is again for a call that returns a list.
func dump[T any](what string, f func() ([]T, error)) ([]T, error) {
	var out []T
	err := again(func() (err error) {
		out, err = f()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", what, err)
	}
	return out, nil
}

// Read lists what the kernel has: all devices, all addresses, the unicast routes of the main table, and the permanent
// neighbours and forwarding entries of the devices that entries names.
func (k *Kernel) Read(entries func(dev string) bool) (State, error) {
	links, err := dump("devices", k.h.LinkList)
	if err != nil {
		return State{}, err
	}
	var s State
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		s.Links = append(s.Links, linkValue(l))
	}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump("addresses", func() ([]netlink.Addr, error) { return k.h.AddrList(nil, fam) })
		if err != nil {
			return State{}, err
		}
		for _, a := range addrs {
			if dev, ok := names[a.LinkIndex]; ok {
				s.Addrs = append(s.Addrs, Addr{Dev: dev, Prefix: prefixOf(a.IPNet)})
			}
		}
		routes, err := k.routes(fam, names)
		if err != nil {
			return State{}, err
		}
		s.Routes = append(s.Routes, routes...)
	}
	return s, nil
}

// linkValue turns the library's link into ours.
func linkValue(l netlink.Link) Link {
	a := l.Attrs()
	v := Link{Name: a.Name, Index: a.Index, MTU: a.MTU, TxQueueLen: max(a.TxQLen, 0), Up: a.Flags&net.FlagUp != 0}
	switch l.Type() {
	case "device", "":
	case "tuntap":
		v.Kind = KindTUN
	default:
		v.Kind = LinkKind(l.Type())
	}
	if len(a.HardwareAddr) == len(v.MAC) {
		v.MAC = MAC(a.HardwareAddr)
	}
	return v
}

// prefixOf keeps the host bits. An IPv4 address may come in 16 bytes; the mask tells.
func prefixOf(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // an invalid slice gives the zero Addr, which is what it means
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// routes lists the unicast routes of the main table.
func (k *Kernel) routes(fam int, names map[int]string) ([]Route, error) {
	filter := netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
	rs, err := dump("routes", func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(fam, &filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return nil, err
	}
	out := make([]Route, 0, len(rs))
	for _, r := range rs {
		if r.Dst == nil || r.Type != unix.RTN_UNICAST {
			continue
		}
		v := Route{
			Dst: prefixOf(r.Dst), Via: addrOf(r.Gw), Dev: names[r.LinkIndex], Metric: r.Priority, Protocol: int(r.Protocol),
			OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0, LinkOnly: r.Scope == netlink.SCOPE_LINK,
		}
		if fam == netlink.FAMILY_V6 && v.Metric == ipv6DefaultMetric {
			v.Metric = 0
		}
		out = append(out, v)
	}
	return out, nil
}

// ipv6DefaultMetric is what the kernel makes of metric 0 (IP6_RT_PRIO_USER in linux/ipv6_route.h).
const ipv6DefaultMetric = 1024

// Apply performs the operations in order and returns an error for each, nil where it worked.
func (k *Kernel) Apply(ops []Op) []error {
	errs := make([]error, len(ops))
	for i, o := range ops {
		if err := again(func() error { return k.apply(o) }); err != nil {
			errs[i] = fmt.Errorf("%s: %w", o, err)
		}
	}
	return errs
}

func (k *Kernel) apply(o Op) error {
	l, err := k.h.LinkByName(o.Object.device())
	if err != nil {
		return err
	}
	switch x := o.Object.(type) {
	case Link:
		return k.applyLink(l, x)
	case Addr:
		a := &netlink.Addr{IPNet: ipNet(x.Prefix)}
		if o.Verb == Delete {
			return k.h.AddrDel(l, a)
		}
		return k.h.AddrReplace(l, a)
	case Route:
		r := routeMessage(x, l.Attrs().Index)
		if o.Verb == Delete {
			return k.h.RouteDel(r)
		}
		return k.h.RouteReplace(r)
	}
	return fmt.Errorf("%w: %T", errors.ErrUnsupported, o.Object)
}

func routeMessage(r Route, index int) *netlink.Route {
	m := &netlink.Route{
		LinkIndex: index, Dst: ipNet(r.Dst), Protocol: netlink.RouteProtocol(r.Protocol), Priority: r.Metric,
		Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Scope: netlink.SCOPE_UNIVERSE,
	}
	if r.Via.IsValid() {
		m.Gw = r.Via.AsSlice()
	}
	if r.OnLink {
		m.Flags |= int(netlink.FLAG_ONLINK)
	}
	if r.LinkOnly {
		m.Scope = netlink.SCOPE_LINK
	}
	return m
}

func (k *Kernel) applyLink(l netlink.Link, x Link) error {
	if x.MTU != 0 {
		if err := k.h.LinkSetMTU(l, x.MTU); err != nil {
			return err
		}
	}
	if x.TxQueueLen != 0 {
		if err := k.h.LinkSetTxQLen(l, x.TxQueueLen); err != nil {
			return err
		}
	}
	if x.Up {
		return k.h.LinkSetUp(l)
	}
	return nil
}

// Watch calls changed after each change of devices, addresses, routes or neighbours, and once at the start. It blocks
// until ctx ends or the subscription breaks; lost messages (ENOBUFS) only mean that changed is called, as it carries no detail.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("subscribe to netlink: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	for {
		changed()
		_, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("receive from netlink: %w", err)
		}
	}
}
