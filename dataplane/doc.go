// Package dataplane moves inner packets between the TUN device and the UDP sockets of the overlay.
//
//	 pods, host                                                             other nodes
//	     |                                                                       ^
//	     v                                                                       |
//	+---------+  read   +----------+  look up   +--------+  reserve,   +------------------+
//	|  TUN    | ------> |  worker  | ---------> |  fib   |  flush      |  socket i of     |
//	| queues  |         |    i     |            +--------+ ----------> |  the group, 8285 |
//	| of i    | <------ |          | <-------------------------------- |                  |
//	+---------+  write  +----------+      receive, check the source     +------------------+
//
// A worker is one goroutine that owns two TUN queues and one socket and moves every packet to its end before it
// takes the next: no channel, no pool, no lock and no log on the path. All it shares is one atomic pointer to
// the view of the overlay (which nodes there are, which subnets they have), loaded once a round. When neither
// end has anything it waits for both, and for an eventfd by which others wake it (wait.go). Its second queue is
// for flows that send much, so that others do not wait behind them (flows.go).
//
// Nothing here knows leases or netlink: SetNodes says who is there, and the TUN's address, route and state are
// somebody else's business. What is lost under the workers - the device deleted, a socket aborted - is made again
// by the supervisor, which hands the new queue or socket to each worker through an atomic pointer of its own.
//
// The words used here (frame, segment, datagram, train) are explained in package encap.
package dataplane
