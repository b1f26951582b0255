package ctrl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls notify at the start, after each relevant change, and after lost messages (ENOBUFS),
// which may have been about anything. It blocks until ctx ends or the subscription breaks. It works
// in the network namespace of the calling thread.
func (k *Kernel) Watch(ctx context.Context, relevant func(Event) bool, notify func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR,
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
	watching, cancel := context.WithCancel(ctx)
	policies := make(chan struct{})
	go func() {
		defer close(policies)
		k.watchPolicies(watching, relevant, notify)
	}()
	defer func() {
		cancel()
		<-policies
	}()
	var names map[int]string
	for {
		if names == nil {
			if names, err = k.linkNames(); err != nil {
				return err
			}
			notify()
		}
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			names = nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("receive from netlink: %w", err)
		}
		for _, m := range msgs {
			if e, ok := parseEvent(m, names); ok && relevant(e) {
				notify()
			}
		}
	}
}

// linkNames returns the device names by index. It opens its own socket, because Watch runs
// concurrently with Read.
func (k *Kernel) linkNames() (map[int]string, error) {
	links, err := dump("devices", netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

// parseEvent converts a message and keeps names up to date. It skips a message that it cannot
// parse; the next resync finds that change.
func parseEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return linkEvent(m, names)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return Event{}, false
		}
		return Event{Kind: AddrEvent, Dev: names[int(nl.DeserializeIfAddrmsg(m.Data).Index)]}, true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeEvent(m, names)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(m.Data)
		if err != nil {
			return Event{}, false
		}
		e := Event{
			Kind: NeighEvent, Dev: names[n.LinkIndex], Deleted: m.Header.Type == unix.RTM_DELNEIGH,
		}
		e.Permanent = e.Deleted || n.State&netlink.NUD_PERMANENT != 0
		e.Object = neighObject(e.Dev, n)
		return e, true
	}
	return Event{}, false
}

// neighObject converts a neighbour or forwarding entry; nil if it is neither.
func neighObject(dev string, n *netlink.Neigh) Object {
	var m MAC
	copy(m[:], n.HardwareAddr)
	ip := addrOf(n.IP)
	switch {
	case !ip.IsValid():
		return nil
	case n.Family != unix.AF_BRIDGE:
		return Neighbour{Dev: dev, IP: ip, MAC: m}
	case n.Flags&netlink.NTF_SELF != 0:
		return FDBEntry{Dev: dev, MAC: m, Dst: ip}
	}
	return nil
}

func linkEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return Event{}, false
	}
	index := int(nl.DeserializeIfInfomsg(m.Data).Index)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return Event{}, false
	}
	e := Event{Kind: LinkEvent, Dev: names[index]}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			e.Dev = unix.ByteSliceToString(a.Value)
		}
	}
	if m.Header.Type == unix.RTM_DELLINK {
		delete(names, index)
	} else if names != nil {
		names[index] = e.Dev
	}
	return e, true
}

func routeEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	if len(m.Data) < unix.SizeofRtMsg {
		return Event{}, false
	}
	r := nl.DeserializeRtMsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil || r.Table != unix.RT_TABLE_MAIN {
		return Event{}, false
	}
	addr := netip.IPv4Unspecified()
	if r.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	kind, known := routeKind(int(r.Type))
	v := Route{
		Kind: kind, Protocol: int(r.Protocol), OnLink: r.Flags&unix.RTNH_F_ONLINK != 0,
	}
	if r.Family == unix.AF_INET {
		v.Scope = r.Scope
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			addr = addrOf(a.Value)
		case unix.RTA_GATEWAY:
			v.Via = addrOf(a.Value)
		case unix.RTA_OIF:
			v.Dev = names[int(uint32Of(a.Value))]
		case unix.RTA_PRIORITY:
			v.Metric = int(uint32Of(a.Value))
		case unix.RTA_MULTIPATH, unix.RTA_VIA:
			known = false
		}
	}
	v.Dst = netip.PrefixFrom(addr, int(r.Dst_len))
	e := Event{
		Kind: RouteEvent, Dev: v.Dev, Dst: v.Dst, Deleted: m.Header.Type == unix.RTM_DELROUTE,
	}
	if known {
		e.Object = v.normal()
	}
	return e, true
}

// uint32Of decodes the value of an attribute; 0 if it is too short.
func uint32Of(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return nl.NativeEndian().Uint32(b)
}
