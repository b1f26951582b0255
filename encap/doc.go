// Package encap defines the bytes of the overlay: the header of an inner packet, the overhead of
// each encapsulation, IPv4 fragmentation, and the ICMP errors returned to a sender.
//
// On the wire of the udp backend a datagram's payload is exactly one bare inner packet:
//
//	 outer IP (20 or 40)   UDP (8)         inner packet, as it left the pod
//	+--------------------+---------------+------------------+------------------------------+
//	| node -> node, DF   | 8285 -> 8285  | IPv4 or IPv6     | TCP, UDP, ICMP, anything     |
//	+--------------------+---------------+------------------+------------------------------+
//
// There is no header between UDP and the inner packet, and there must not be one: flannel's udp
// backend and the kernel's FOU tunnels read the same bytes.
//
// Terms used in this package and in dataplane:
//
//	inner packet   one IPv4 or IPv6 packet sent by a pod
//	frame          the unit read from or written to a TUN queue: an inner packet or a GSO frame
//	GSO frame      up to 64 KiB of one TCP or UDP flow under one header, cut into equal segments
//	segment        one inner packet cut from a GSO frame; the last of a frame may be shorter
//	datagram       a UDP payload: exactly one inner packet
//	train          datagrams of one size for one node, sent or delivered by the kernel in one
//	               message; the last may be shorter
//
// The package is pure: it has no file descriptors, goroutines, clocks or logs.
package encap
