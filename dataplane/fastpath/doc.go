// Package fastpath lets the kernel carry the packets of the udp backend that need no decision,
// before they reach a worker.
//
//	pods -> routes -> TUN device
//	                    | outbound, at its egress: + outer headers, to the next hop ---> wire
//	                    | the rest
//	                    v
//	                  TUN queue -> worker, as without this package
//
//	wire -> underlay interface
//	          | inbound, at its ingress: - outer headers, as received on the TUN device
//	          |                            or, TCP in bulk: veth pair (GRO) -> joined -> TUN device
//	          | the rest
//	          v
//	        UDP socket -> worker
//
// The programs are in bpf/fastpath.c. They take a packet or pass it, but never answer and never
// drop (except that the kernel may have no memory for the headers). Each decision that drops,
// fragments or answers is the worker's. Bytes on the wire are the same, apart from the outer UDP
// checksum, which is 0. The outer headers are IPv4 or IPv6, as the node's outer address is; either
// carries packets of both families.
//
// # Which packets
//
// Outbound takes a packet if its node takes such packets, too, which its lease says: a packet of
// the kernel may have an unfinished inner checksum, which only a kernel can finish. It passes the
// packets of flows that send in bulk, since workers send and receive trains, but takes TCP, of
// which the kernel's GSO and GRO make trains at less cost. Inbound takes packets with UDP checksum
// 0, which only outbound sends, if the worker would accept them. So the sender alone decides which
// way a packet takes on both nodes.
//
// A flow moves to the workers at once, because all its earlier packets have left. It moves back
// after a silence that is longer than a packet waits for a worker, so that its packets stay in
// order.
//
// # Without a daemon
//
// The programs are pinned and the device is persistent, so both outlast the process. A daemon that
// has ended, whose socket is gone, or whose last heartbeat is too old carries nothing: outbound
// then takes bulk flows, too, and inbound the packets of workers. The next daemon loads its own
// programs and maps, fills in the nodes, and replaces the programs in one step, so the layout of
// the maps may differ.
package fastpath
