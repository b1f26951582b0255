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

// watch calls changed at the start, after each change that relevant accepts, and after messages were lost (ENOBUFS),
// which is as good as a change of everything. It blocks until ctx ends or the subscription breaks. It works in the
// network namespace of the calling thread.
func (k *Kernel) watch(ctx context.Context, relevant func(event) bool, changed func()) error {
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
	var names map[int]string
	for {
		if names == nil {
			if names, err = k.linkNames(); err != nil {
				return err
			}
			changed()
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
				changed()
			}
		}
	}
}

// linkNames gives the devices' names by index. It has a socket of its own, as watch runs beside read.
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

// parseEvent reads what relevant needs of a message, and keeps names up to date. A message that cannot be read is
// taken for a change of a device without a name, which is relevant to nobody but found by the next timer.
func parseEvent(m syscall.NetlinkMessage, names map[int]string) (event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return linkEvent(m, names)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return event{}, false
		}
		return event{what: addrEvent, dev: names[int(nl.DeserializeIfAddrmsg(m.Data).Index)]}, true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeEventOf(m, names)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(m.Data)
		if err != nil {
			return event{}, false
		}
		gone := m.Header.Type == unix.RTM_DELNEIGH
		return event{what: entryEvent, dev: names[n.LinkIndex], lasting: gone || n.State&netlink.NUD_PERMANENT != 0}, true
	}
	return event{}, false
}

func linkEvent(m syscall.NetlinkMessage, names map[int]string) (event, bool) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return event{}, false
	}
	index := int(nl.DeserializeIfInfomsg(m.Data).Index)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return event{}, false
	}
	e := event{what: deviceEvent, dev: names[index]}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			e.dev = unix.ByteSliceToString(a.Value)
		}
	}
	if m.Header.Type == unix.RTM_DELLINK {
		delete(names, index)
	} else if names != nil {
		names[index] = e.dev
	}
	return e, true
}

func routeEventOf(m syscall.NetlinkMessage, names map[int]string) (event, bool) {
	if len(m.Data) < unix.SizeofRtMsg {
		return event{}, false
	}
	r := nl.DeserializeRtMsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil || r.Table != unix.RT_TABLE_MAIN {
		return event{}, false
	}
	e := event{what: routeEvent}
	addr := netip.IPv4Unspecified()
	if r.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			addr = addrOf(a.Value)
		case unix.RTA_OIF:
			if len(a.Value) >= 4 {
				e.dev = names[int(nl.NativeEndian().Uint32(a.Value))]
			}
		}
	}
	e.dst = netip.PrefixFrom(addr, int(r.Dst_len))
	return e, true
}
