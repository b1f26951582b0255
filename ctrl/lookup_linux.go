package ctrl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lookup describes a packet for Kernel.Lookup.
type Lookup struct {
	Dst netip.Addr
	Src netip.Addr // invalid: chosen by the kernel
	In  string     // device by which it arrives; empty: it is sent by this host
}

// LookupResult is the kernel's decision about a packet.
type LookupResult struct {
	Dev   string
	Via   netip.Addr // invalid: directly on Dev
	Src   netip.Addr // preferred source address; may be invalid
	Table int        // routing table, RT_TABLE_... in linux/rtnetlink.h
	Local bool       // delivered to this host
	// MTU is the path MTU that the kernel has learned or that the route sets, in bytes; 0: that of
	// the device.
	MTU int
	// Match is the prefix of the route and Protocol its origin; invalid if the kernel does not tell
	// (before 4.13).
	Match    netip.Prefix
	Protocol int
}

// TableMain is the number of the main routing table, TableLocal that of local addresses
// (RT_TABLE_MAIN, RT_TABLE_LOCAL).
const (
	TableMain  = unix.RT_TABLE_MAIN
	TableLocal = unix.RT_TABLE_LOCAL
)

// Lookup asks the kernel for the route of a packet, policy rules included (RTM_GETROUTE). The error
// wraps the kernel's: ENETUNREACH without a route, EHOSTUNREACH, EACCES or EINVAL for routes that
// reject packets, EXDEV if reverse path filtering rejects Src.
func (k *Kernel) Lookup(l Lookup) (LookupResult, error) {
	options := netlink.RouteGetOptions{Iif: l.In}
	if l.Src.IsValid() {
		options.SrcAddr = l.Src.AsSlice()
	}
	r, err := k.lookup(l.Dst, options)
	if err != nil {
		if route, found := k.rejecting(l.Dst); found {
			err = fmt.Errorf("the route %q rejects packets: %w", route, err)
		}
		return LookupResult{}, err
	}
	names, err := k.linkNames()
	if err != nil {
		return LookupResult{}, err
	}
	found := LookupResult{Dev: names[r.LinkIndex], Via: addrOf(r.Gw), Src: addrOf(r.Src),
		Table: r.Table, Local: r.Type == unix.RTN_LOCAL, MTU: r.MTU}
	options.FIBMatch = true
	if match, err := k.lookup(l.Dst, options); err == nil {
		found.Protocol = int(match.Protocol)
		switch {
		case match.Dst != nil:
			found.Match = prefixOf(match.Dst)
		case l.Dst.Is4():
			found.Match = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		default:
			found.Match = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	return found, nil
}

func (k *Kernel) lookup(dst netip.Addr, o netlink.RouteGetOptions) (netlink.Route, error) {
	rs, err := dump("the route", func() ([]netlink.Route, error) {
		return k.h.RouteGetWithOptions(dst.AsSlice(), &o)
	})
	if err != nil {
		return netlink.Route{}, err
	}
	if len(rs) == 0 {
		return netlink.Route{}, errors.New("no route")
	}
	return rs[0], nil
}

// rejecting returns the most specific route with an address that rejects packets, of any table, in
// the words of `ip route`. The kernel's errors do not tell such routes from other causes.
func (k *Kernel) rejecting(a netip.Addr) (route string, found bool) {
	kinds := map[int]string{unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable",
		unix.RTN_PROHIBIT: "prohibit"}
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	// Without the list, the error of the lookup stands alone.
	rs, _ := dump("routes", func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	bits := -1
	for _, r := range rs {
		kind, rejects := kinds[r.Type]
		if !rejects || r.Dst == nil || !prefixOf(r.Dst).Contains(a) || prefixOf(r.Dst).Bits() <= bits {
			continue
		}
		bits = prefixOf(r.Dst).Bits()
		route = fmt.Sprintf("%s %s table %d", kind, prefixOf(r.Dst), r.Table)
	}
	return route, bits >= 0
}

// PolicyRules lists the policy rules of both families except those that every kernel starts with,
// in the words of `ip rule`.
func (k *Kernel) PolicyRules() ([]string, error) {
	const mainPriority, defaultPriority = 32766, 32767 // net/ipv4/fib_rules.c
	var out []string
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := dump("policy rules", func() ([]netlink.Rule, error) { return k.h.RuleList(fam) })
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if !slices.Contains([]int{0, -1, mainPriority, defaultPriority}, r.Priority) {
				out = append(out, ruleText(r))
			}
		}
	}
	return out, nil
}

func ruleText(r netlink.Rule) string {
	text := fmt.Sprintf("%d: from %v to %v", r.Priority, orAll(r.Src), orAll(r.Dst))
	if r.Mark != 0 {
		text += fmt.Sprintf(" fwmark %#x", r.Mark)
	}
	if r.IifName != "" {
		text += " iif " + r.IifName
	}
	action, rejects := map[uint8]string{unix.FR_ACT_BLACKHOLE: "blackhole", unix.FR_ACT_UNREACHABLE: "unreachable",
		unix.FR_ACT_PROHIBIT: "prohibit"}[r.Type]
	if rejects {
		return text + " " + action
	}
	return text + fmt.Sprintf(" lookup %d", r.Table)
}

func orAll[T fmt.Stringer](n T) string {
	if s := n.String(); s != "<nil>" {
		return s
	}
	return "all"
}

// NeighbourState is the kernel's knowledge about a neighbour.
type NeighbourState struct {
	Dev    string
	IP     netip.Addr
	MAC    MAC  // zero while not resolved
	Failed bool // nothing answered
	// Permanent is set if a program or an administrator made the entry: the kernel does not ask
	// the neighbour.
	Permanent bool
}

// NeighbourStates lists the entries of the neighbour tables of both families, whatever made them.
func (k *Kernel) NeighbourStates() ([]NeighbourState, error) {
	names, err := k.linkNames()
	if err != nil {
		return nil, err
	}
	var out []NeighbourState
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		ns, err := dump("neighbours", func() ([]netlink.Neigh, error) { return k.h.NeighList(0, fam) })
		if err != nil {
			return nil, err
		}
		for _, n := range ns {
			s := NeighbourState{Dev: names[n.LinkIndex], IP: addrOf(n.IP),
				Failed:    n.State&netlink.NUD_FAILED != 0,
				Permanent: n.State&netlink.NUD_PERMANENT != 0}
			if len(n.HardwareAddr) == len(s.MAC) {
				s.MAC = MAC(n.HardwareAddr)
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// NetemDevices lists the devices whose queueing discipline emulates a bad network (tc-netem(8)).
func (k *Kernel) NetemDevices() ([]string, error) {
	names, qdiscs, err := k.qdiscs()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, q := range qdiscs {
		if name := names[q.Attrs().LinkIndex]; q.Type() == "netem" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}
