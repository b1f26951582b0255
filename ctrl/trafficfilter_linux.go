package ctrl

import (
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FilterEffect is an effect of a traffic control filter on packets.
type FilterEffect string

// The effects. A filter without one of them is not listed.
const (
	FilterDrops     FilterEffect = "drop"
	FilterRedirects FilterEffect = "redirect" // to another device
	FilterMirrors   FilterEffect = "mirror"   // a copy to another device
	FilterPolices   FilterEffect = "police"   // drops what exceeds a rate
	// FilterProgram is a BPF program, which may do anything.
	FilterProgram FilterEffect = "BPF program"
)

// TrafficFilter is a filter of traffic control on a device (tc(8)).
type TrafficFilter struct {
	Dev     string
	Ingress bool   // else egress
	Kind    string // of the classifier: "u32"
	Name    string // of a BPF program
	Effect  FilterEffect
	// All is set if the filter matches all packets of its protocol.
	All bool
	// To is the device of FilterRedirects and FilterMirrors, ToIngress its direction.
	To        string
	ToIngress bool
	Rate      uint64 // of FilterPolices in bytes per second; 0 if not known
	// Packets counts the packets that the effect has met, Dropped those that it dropped.
	Packets, Dropped uint64
}

// Direction returns the direction as tc has it.
func (f TrafficFilter) Direction() string {
	if f.Ingress {
		return "ingress"
	}
	return "egress"
}

// TrafficFilters lists the filters of the devices, in the qdiscs ingress and clsact.
func (k *Kernel) TrafficFilters(devices []string) ([]TrafficFilter, error) {
	names, qdiscs, err := k.qdiscs()
	if err != nil {
		return nil, err
	}
	var out []TrafficFilter
	for _, q := range qdiscs {
		dev := names[q.Attrs().LinkIndex]
		if !slices.Contains(devices, dev) {
			continue
		}
		parents := map[string][]uint32{"ingress": {netlink.HANDLE_MIN_INGRESS},
			"clsact": {netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS}}[q.Type()]
		for _, parent := range parents {
			link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: dev, Index: q.Attrs().LinkIndex}}
			filters, err := dump("filters", func() ([]netlink.Filter, error) { return k.h.FilterList(link, parent) })
			if isNotFound(err) || errors.Is(err, unix.EINVAL) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, err
			}
			for _, f := range filters {
				for _, v := range filterValues(f, names) {
					v.Dev, v.Ingress = dev, parent == netlink.HANDLE_MIN_INGRESS
					out = append(out, v)
				}
			}
		}
	}
	return out, nil
}

// qdiscs lists the queueing disciplines of all devices, and the devices' names by index.
func (k *Kernel) qdiscs() (names map[int]string, all []netlink.Qdisc, err error) {
	if names, err = k.linkNames(); err != nil {
		return nil, nil, err
	}
	all, err = dump("queueing disciplines", func() ([]netlink.Qdisc, error) { return k.h.QdiscList(nil) })
	return names, all, err
}

// filterValues returns the effects of a filter.
func filterValues(f netlink.Filter, names map[int]string) (out []TrafficFilter) {
	base := TrafficFilter{Kind: f.Type()}
	var actions []netlink.Action
	switch f := f.(type) {
	case *netlink.U32:
		actions = f.Actions
		base.All = f.Sel != nil && !slices.ContainsFunc(f.Sel.Keys, func(k netlink.TcU32Key) bool { return k.Mask != 0 })
		if f.Police != nil {
			actions = append(actions, f.Police)
		}
	case *netlink.MatchAll:
		actions, base.All = f.Actions, true
	case *netlink.Flower:
		actions = f.Actions
	case *netlink.FwFilter:
		if f.Police != nil {
			actions = append(actions, f.Police)
		}
	case *netlink.BpfFilter:
		if f.DirectAction {
			base.Name, base.Effect = f.Name, FilterProgram
			return []TrafficFilter{base}
		}
	}
	for _, a := range actions {
		if v, ok := actionValue(base, a, names); ok {
			out = append(out, v)
		}
	}
	return out
}

// actionValue adds the effect of an action to the value of its filter. ok is false if it has none.
func actionValue(v TrafficFilter, a netlink.Action, names map[int]string) (TrafficFilter, bool) {
	if s := a.Attrs().Statistics; s != nil {
		if s.Basic != nil {
			v.Packets = uint64(s.Basic.Packets)
		}
		if s.Queue != nil {
			v.Dropped = uint64(s.Queue.Drops)
		}
	}
	switch a := a.(type) {
	case *netlink.GenericAction:
		v.Effect = FilterDrops
		v.Dropped = v.Packets
		return v, a.Action == netlink.TC_ACT_SHOT
	case *netlink.PoliceAction:
		v.Effect, v.Rate = FilterPolices, uint64(a.Rate)
		return v, true
	case *netlink.MirredAction:
		v.To = names[a.Ifindex]
		v.Effect = FilterMirrors
		if a.MirredAction == netlink.TCA_EGRESS_REDIR || a.MirredAction == netlink.TCA_INGRESS_REDIR {
			v.Effect = FilterRedirects
		}
		v.ToIngress = a.MirredAction == netlink.TCA_INGRESS_REDIR || a.MirredAction == netlink.TCA_INGRESS_MIRROR
		return v, true
	}
	return v, false
}
