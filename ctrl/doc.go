// Package ctrl keeps the kernel's devices, addresses and routes in the state that the leases of the
// cluster ask for.
//
// This is the end of a lease's path:
//
//	leases -> backend.Plan -> State -> Reconciler.Set -> diff(have, want) -> Kernel
//
// A backend (package backend) turns the leases into a wanted [State]: devices, addresses, routes,
// neighbours and forwarding entries as plain comparable values. diff compares it with the kernel's
// state and lists the operations in an order that works. The [Reconciler] applies them, and repeats
// that whenever the kernel's state changes. A first start, a restart, a missed event and a repair
// take the same path.
//
// Only state that Weft owns is ever changed or removed:
//
//   - routes with [RouteProtocol] whose destination is in one of the wanted networks;
//   - devices with the names that flannel gives to its devices, if the plan wants them or if they
//     have an address or a route in one of the wanted networks; on those devices, addresses inside
//     the networks, permanent neighbours and permanent forwarding entries.
//
// Out of scope: packets, leases, the choice of the underlay interface (package underlay) and packet
// filter rules (package netfilter). Only the files *_linux.go use netlink; all others build and are
// tested on any system.
package ctrl
