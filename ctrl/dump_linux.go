package ctrl

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpMessages requests a list (RTM_GET...) and passes the data of each message to each, which must
// not keep it. The netlink library makes a value of about 400 bytes of each route, which for 10,000
// takes several times as long as the kernel's part. The caller holds k.mu.
func (k *Kernel) dumpMessages(typ int, head nl.NetlinkRequestData, each func(data []byte)) error {
	req := nl.NewNetlinkRequest(typ, unix.NLM_F_DUMP)
	k.seq++
	req.Seq = k.seq
	req.AddData(head)
	if err := unix.Sendto(k.batch.GetFd(), req.Serialize(), 0,
		&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	interrupted := false
	for {
		msgs, err := k.receive()
		if err != nil {
			return fmt.Errorf("receive from netlink: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Seq != req.Seq {
				continue // a late reply to an earlier message that timed out
			}
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case m.Header.Type == unix.NLMSG_ERROR:
				return ackError(m)
			case m.Header.Type != unix.NLMSG_DONE:
				each(m.Data)
			case interrupted:
				return netlink.ErrDumpInterrupted
			default:
				return doneError(m.Data)
			}
		}
	}
}

// doneError returns the error with which the kernel ended a list early; nil if it is complete.
func doneError(data []byte) error {
	if code := int32(uint32Of(data)); code < 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// attributes iterates over netlink attributes (struct rtattr of linux/rtnetlink.h), up to one that
// is cut off. The values are parts of b.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if length < unix.SizeofRtAttr || length > len(b) ||
				!yield(typ, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min((length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(b)):]
		}
	}
}

// routeMessage is a decoded route message.
type routeMessage struct {
	Route
	known bool // of a kind that concerns packets to other hosts
	// simple is unset if Route does not hold all: with several next hops, or with one of another
	// family.
	simple bool
	hops   []byte // struct rtnexthop, several times; part of the message
}

// parseRoute decodes a route message (struct rtmsg of linux/rtnetlink.h and attributes). ok is
// false if it is cut off or not about the main table.
func parseRoute(b []byte, names map[int]string) (r routeMessage, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return routeMessage{}, false
	}
	head := nl.DeserializeRtMsg(b)
	if head.Table != unix.RT_TABLE_MAIN {
		return routeMessage{}, false
	}
	addr := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	r.simple = true
	r.Kind, r.known = routeKind(int(head.Type))
	r.Protocol, r.OnLink = int(head.Protocol), head.Flags&unix.RTNH_F_ONLINK != 0
	if head.Family == unix.AF_INET {
		r.Scope = head.Scope
	}
	for typ, value := range attributes(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			addr = addrOf(value)
		case unix.RTA_GATEWAY:
			r.Via = addrOf(value)
		case unix.RTA_OIF:
			r.Dev = names[int(uint32Of(value))]
		case unix.RTA_PRIORITY:
			r.Metric = int(uint32Of(value))
		case unix.RTA_MULTIPATH:
			r.simple, r.hops = false, value
		case unix.RTA_VIA:
			r.simple = false
		}
	}
	r.Dst = netip.PrefixFrom(addr, int(head.Dst_len))
	return r, true
}

// routes returns one Route per next hop.
func (r routeMessage) routes(names map[int]string) []Route {
	v := r.Route.normal()
	if len(r.hops) == 0 {
		return []Route{v}
	}
	var out []Route
	for hops := r.hops; len(hops) >= unix.SizeofRtNexthop; {
		hop := nl.DeserializeRtNexthop(hops)
		length := int(hop.RtNexthop.Len)
		if length < unix.SizeofRtNexthop || length > len(hops) {
			break
		}
		v.Via, v.Dev = netip.Addr{}, names[int(hop.Ifindex)]
		v.OnLink = hop.RtNexthop.Flags&unix.RTNH_F_ONLINK != 0
		for typ, value := range attributes(hops[unix.SizeofRtNexthop:length]) {
			if typ == unix.RTA_GATEWAY {
				v.Via = addrOf(value)
			}
		}
		out = append(out, v)
		hops = hops[min((length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(hops)):]
	}
	return out
}

// routes lists the routes of the main table in one family that keep selects. The caller holds k.mu.
func (k *Kernel) routes(fam int, names map[int]string, keep func(Route) bool) ([]Route, error) {
	return dump("routes", func() (out []Route, err error) {
		head := &nl.RtMsg{}
		head.Family = uint8(fam)
		err = k.dumpMessages(unix.RTM_GETROUTE, head, func(data []byte) {
			// Older kernels list IPv6's exceptions, too (RTM_F_CLONED).
			r, ok := parseRoute(data, names)
			if !ok || !r.known || nl.DeserializeRtMsg(data).Flags&unix.RTM_F_CLONED != 0 {
				return
			}
			if r.simple {
				if v := r.Route.normal(); keep(v) {
					out = append(out, v)
				}
				return
			}
			for _, v := range r.routes(names) {
				if keep(v) {
					out = append(out, v)
				}
			}
		})
		return out, err
	})
}

// neighbour is a decoded entry of a neighbour or forwarding table.
type neighbour struct {
	index     int // of the device
	permanent bool
	object    Object // Neighbour or FDBEntry, without the device; nil if it is neither
}

// parseNeighbour decodes a neighbour message (struct ndmsg of linux/neighbour.h and attributes). ok
// is false if it is cut off.
func parseNeighbour(b []byte) (n neighbour, ok bool) {
	var head netlink.Ndmsg
	const size = 12 // of struct ndmsg
	if len(b) < size {
		return neighbour{}, false
	}
	head.Family = b[0]
	head.Index = binary.NativeEndian.Uint32(b[4:])
	head.State, head.Flags = binary.NativeEndian.Uint16(b[8:]), b[10]
	n = neighbour{index: int(head.Index), permanent: head.State&netlink.NUD_PERMANENT != 0}
	var ip netip.Addr
	var m MAC
	for typ, value := range attributes(b[size:]) {
		switch typ {
		case netlink.NDA_DST:
			ip = addrOf(value)
		case netlink.NDA_LLADDR:
			copy(m[:], value)
		}
	}
	switch {
	case !ip.IsValid():
	case head.Family != unix.AF_BRIDGE:
		n.object = Neighbour{IP: ip, MAC: m}
	case head.Flags&netlink.NTF_SELF != 0:
		n.object = FDBEntry{MAC: m, Dst: ip}
	}
	return n, true
}

// on returns the object with its device.
func (n neighbour) on(dev string) Object {
	switch o := n.object.(type) {
	case Neighbour:
		o.Dev = dev
		return o
	case FDBEntry:
		o.Dev = dev
		return o
	}
	return nil
}

// routeEvent converts a route message of the main table.
func routeEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	r, ok := parseRoute(m.Data, names)
	if !ok {
		return Event{}, false
	}
	e := Event{
		Kind: RouteEvent, Dev: r.Dev, Dst: r.Dst, Deleted: m.Header.Type == unix.RTM_DELROUTE,
		Protocol: r.Protocol,
	}
	if r.known && r.simple {
		e.Object = r.Route.normal()
	}
	return e, true
}

// neighbourEvent converts a neighbour message.
func neighbourEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	n, ok := parseNeighbour(m.Data)
	if !ok {
		return Event{}, false
	}
	e := Event{
		Kind: NeighEvent, Dev: names[n.index], Deleted: m.Header.Type == unix.RTM_DELNEIGH,
	}
	e.Permanent = e.Deleted || n.permanent
	e.Object = n.on(e.Dev)
	return e, true
}

// uint32Of decodes the value of an attribute; 0 if it is too short.
func uint32Of(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
