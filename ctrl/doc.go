// Package ctrl makes the kernel look as the leases of the cluster ask for.
//
// The way of a lease ends here:
//
//	leases -> Backend.Plan -> State -> Reconciler.Set -> diff(have, want) -> Kernel
//
// A [Backend] is a pure value made from the network config, the underlay interface and what the daemon knows of itself;
// its Plan turns the leases into a wanted [State]: devices, addresses, routes, neighbours, forwarding entries, as plain
// comparable values. diff compares that with what the kernel has and lists the operations in an order that works. The
// [Reconciler] applies them, and does it again when the kernel changes under it. A first start, a restart, a missed
// event and a repair are the same path.
//
// [ChooseIface] and [WatchIface] find the underlay interface and follow its address.
//
// What is ours, and nothing else is ever changed or removed:
//
//   - routes with [RouteProtocol] whose destination is in one of our networks;
//   - devices under the names that flannel gives its devices, if the plan wants them or if they carry an address or a
//     route of one of our networks; on those devices addresses inside our networks, permanent neighbours and permanent
//     forwarding entries.
//
// Out of scope: packets, lease stores, filter rules (see the netfilter folder). Only the files *_linux.go speak
// netlink; everything else builds and is tested anywhere.
package ctrl
