// Package dataplane moves inner packets between the TUN device and the UDP sockets of the overlay.
//
//	 pods, host                                                          other nodes
//	     |                                                                    ^
//	     v                                                                    |
//	+---------+  read   +----------+  look up  +-------+  reserve,   +-----------------+
//	|   TUN   | ------> |  worker  | --------> |  fib  |  flush      | socket i of the |
//	| queues  |         |    i     |           +-------+ ----------> | group,          |
//	|  of i   | <------ |          | <------------------------------ | port 8285       |
//	+---------+  write  +----------+     receive, check the source   +-----------------+
//
// A worker is one goroutine that owns two TUN queues and one socket. It finishes each packet before
// it takes the next. Its second queue is for bulk flows, so that other flows do not wait for them
// (flows.go). When neither end has anything, it waits for both and for an eventfd by which other
// goroutines wake it (package poll).
//
// The supervisor recreates the TUN device if it is deleted, and reopens the sockets if one fails.
// It leaves the replacements for the workers in atomic pointers.
//
// # Terms
//
//   - frame, segment, datagram, train: see package encap.
//   - inner, outer: of the packet in the tunnel, of the UDP datagram that carries it.
//   - snapshot: the nodes and subnets of the overlay, immutable. A worker loads it once per round.
//   - round: one pass of a worker over its TUN queues and its socket.
//   - sparse, bulk: the classes of flows, as in fq_codel (RFC 8290).
//   - generation: counts TUN devices or socket groups, so that a late report of a loss is not
//     taken for a loss of the replacement.
//
// # Prohibitions
//
//   - No channel, pool, lock or log on the path of a packet, and no packet crosses goroutines.
//   - No leases: the caller passes the nodes to SetNodes.
//   - No netlink: the caller sets the device's address, route and state.
//   - No header of its own: a datagram is an inner packet and nothing else.
package dataplane
