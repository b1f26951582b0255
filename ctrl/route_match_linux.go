package ctrl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// RouteMatcher finds the routes of single addresses, through all tables and policy rules. It knows
// the devices that existed when it was made.
type RouteMatcher struct {
	k     *Kernel
	names map[int]string
}

// RouteMatcher makes a matcher for a series of lookups. It works in the network namespace of the
// calling thread.
func (k *Kernel) RouteMatcher() (*RouteMatcher, error) {
	names, err := k.linkNames()
	if err != nil {
		return nil, err
	}
	return &RouteMatcher{k, names}, nil
}

// Match returns the routes of packets, in the order of the queries, many per system call. The Err
// of a match is set if there is no route, or one that rejects packets.
func (m *RouteMatcher) Match(queries []RouteQuery) []RouteMatch {
	matches := make([]RouteMatch, 0, len(queries))
	m.k.mu.Lock()
	defer m.k.mu.Unlock()
	for len(queries) > 0 {
		n := min(len(queries), batchSize)
		matches = append(matches, m.matchBatch(queries[:n])...)
		queries = queries[n:]
	}
	return matches
}

// matchBatch sends one message. Where a query with a source fails, it asks again without: the error
// does not tell whether the source is the cause. The caller holds k.mu.
func (m *RouteMatcher) matchBatch(queries []RouteQuery) []RouteMatch {
	matches := m.lookUp(queries)
	var again []RouteQuery
	var index []int
	for i, q := range queries {
		if matches[i].Err != nil && q.Src.IsValid() {
			again, index = append(again, RouteQuery{Dst: q.Dst}), append(index, i)
		}
	}
	if len(again) > 0 {
		for i, r := range m.lookUp(again) {
			matches[index[i]] = r
		}
	}
	return matches
}

func (m *RouteMatcher) lookUp(queries []RouteQuery) []RouteMatch {
	matches, errs := make([]RouteMatch, len(queries)), make([]error, len(queries))
	var msg []byte
	first := m.k.seq + 1
	for i, q := range queries {
		if !q.Dst.IsValid() {
			errs[i] = errors.New("no address")
			continue
		}
		req := routeQuery(q)
		req.Seq = first + uint32(i)
		msg = append(msg, req.Serialize()...)
	}
	err := m.k.exchange(msg, first, len(queries), func(i int, r syscall.NetlinkMessage) {
		switch r.Header.Type {
		case unix.NLMSG_ERROR:
			errs[i] = ackError(r)
		case unix.RTM_NEWROUTE:
			matches[i], errs[i] = m.decode(queries[i].Dst, r.Data)
		}
	})
	for i, q := range queries {
		if err != nil && !matches[i].Dst.IsValid() && errs[i] == nil {
			errs[i] = err
		}
		if errs[i] != nil {
			matches[i].Err = fmt.Errorf("route to %s: %w", q.Dst, errs[i])
		}
	}
	return matches
}

// routeQuery encodes a lookup.
func routeQuery(q RouteQuery) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	m := &nl.RtMsg{}
	m.Family, m.Dst_len = family4or6(q.Dst), uint8(q.Dst.BitLen())
	m.Flags = unix.RTM_F_LOOKUP_TABLE | unix.RTM_F_FIB_MATCH
	if q.Src.IsValid() {
		m.Src_len = uint8(q.Src.BitLen())
	}
	req.AddData(m)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, q.Dst.AsSlice()))
	if q.Src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_SRC, q.Src.AsSlice()))
	}
	return req
}

// decode decodes a route (struct rtmsg of linux/rtnetlink.h and its attributes). Of several next
// hops it returns the first.
func (m *RouteMatcher) decode(dst netip.Addr, b []byte) (RouteMatch, error) {
	if len(b) < unix.SizeofRtMsg {
		return RouteMatch{}, fmt.Errorf("short netlink reply: %d bytes", len(b))
	}
	head := nl.DeserializeRtMsg(b)
	v := RouteMatch{Protocol: int(head.Protocol), Table: int(head.Table),
		Local: head.Type == unix.RTN_LOCAL}
	covered := defaultOf(dst)
	hops := b[unix.SizeofRtMsg:]
	for len(hops) > 0 {
		attrs, err := nl.ParseRouteAttr(hops)
		if err != nil {
			return RouteMatch{}, err
		}
		hops = nil
		for _, a := range attrs {
			switch addr, _ := netip.AddrFromSlice(a.Value); {
			case a.Attr.Type == unix.RTA_DST:
				covered = addr
			case a.Attr.Type == unix.RTA_GATEWAY:
				v.Via = addr
			case a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4:
				v.Dev = m.names[int(binary.NativeEndian.Uint32(a.Value))]
			case a.Attr.Type == unix.RTA_TABLE && len(a.Value) == 4:
				v.Table = int(binary.NativeEndian.Uint32(a.Value))
			case a.Attr.Type == unix.RTA_MULTIPATH && len(a.Value) >= unix.SizeofRtNexthop:
				h := nl.DeserializeRtNexthop(a.Value)
				v.Dev = m.names[int(h.RtNexthop.Ifindex)]
				if end := int(h.RtNexthop.Len); unix.SizeofRtNexthop <= end && end <= len(a.Value) {
					hops = a.Value[unix.SizeofRtNexthop:end]
				}
			}
		}
	}
	if v.Dst = netip.PrefixFrom(covered, int(head.Dst_len)); !v.Dst.IsValid() {
		return RouteMatch{}, errors.New("netlink reply with an invalid destination")
	}
	return v, nil
}

// defaultOf returns the unspecified address of a's family.
func defaultOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// RulesFor lists the priorities of the policy rules that look addresses of a's family up in a
// table.
func (m *RouteMatcher) RulesFor(a netip.Addr, table int) ([]int, error) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	rules, err := dump("policy rules", func() ([]netlink.Rule, error) {
		return m.k.h.RuleList(family)
	})
	if err != nil {
		return nil, err
	}
	var priorities []int
	for _, r := range rules {
		if r.Table == table {
			priorities = append(priorities, r.Priority)
		}
	}
	return priorities, nil
}
