// Package conflict finds addresses that the overlay and the rest of the host both need: a pod
// network that covers other nodes, the gateway or the store, and routes of other programs that take
// packets to pods.
//
// [Prevent] predicts a conflict from the routes of the host, before this node has a lease. A
// [Checker] asks the kernel for the route of each address while the node runs, so policy rules and
// all routing tables are included.
package conflict

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft/ctrl"
)

// Target is an address outside the overlay that this node sends to.
type Target struct {
	Name string // for messages: "node n2", "gateway", "store"
	Addr netip.Addr
}

// String returns name and address.
func (t Target) String() string { return fmt.Sprintf("%s (%s)", t.Name, t.Addr) }

// protocolKernel is the protocol of the routes that come with a device's address (RTPROT_KERNEL in
// linux/rtnetlink.h).
const protocolKernel = 2

// kernelMetric6 is the metric of an IPv6 route that was added without one, which Kernel.Read
// returns as 0 (IP6_RT_PRIO_USER in linux/ipv6_route.h). The kernel's own routes have 256.
const kernelMetric6 = 1024

// Prevent fails if a wanted route to the overlay would take packets to one of the targets, or has
// the destination of a network that the underlay interface is in. The bridge of pods may be in such
// a network: that of a cluster with one node. host are the routes of the main table.
func Prevent(iface string, host, want []ctrl.Route, targets []Target) error {
	for _, w := range want {
		if w.Kind != ctrl.Forward {
			continue
		}
		for _, h := range host {
			if h.Dst == w.Dst && h.Dev == iface && h.Protocol == protocolKernel {
				return fmt.Errorf("network %s is the network that %s is in: choose another Network",
					w.Dst, h.Dev)
			}
		}
		for _, t := range targets {
			if w.Dst.Contains(t.Addr) && takes(w, host, t.Addr) {
				return fmt.Errorf("network %s contains the %s, and the overlay would take the "+
					"packets to it: choose another Network", w.Dst, t)
			}
		}
	}
	return nil
}

// takes reports whether the kernel prefers w to the host's routes for an address.
func takes(w ctrl.Route, host []ctrl.Route, a netip.Addr) bool {
	return !slices.ContainsFunc(host, func(h ctrl.Route) bool {
		if !h.Dst.Contains(a) || h.Protocol == ctrl.RouteProtocol || ctrl.OverlayName(h.Dev) {
			return false
		}
		return cmp.Or(cmp.Compare(h.Dst.Bits(), w.Dst.Bits()),
			cmp.Compare(metric(w), metric(h))) >= 0
	})
}

// metric returns a route's metric as the kernel compares it.
func metric(r ctrl.Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return kernelMetric6
	}
	return r.Metric
}
