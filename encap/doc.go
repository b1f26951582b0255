// Package encap knows what the bytes of a packet mean: the header of an inner packet, what an encapsulation
// costs, how a packet that does not fit is cut, and how its sender is told.
//
// On the wire of the udp backend a datagram's payload is one bare inner packet, with nothing before or after it:
//
//	 outer IP (20 or 40)   UDP (8)         inner packet, as it left the pod
//	+--------------------+---------------+------------------+------------------------------+
//	| node -> node, DF   | 8285 -> 8285  | IPv4 or IPv6     | TCP, UDP, ICMP, anything     |
//	+--------------------+---------------+------------------+------------------------------+
//
// Words used in this package and in dataplane:
//
//	inner packet   what a pod sent: one IPv4 or IPv6 packet
//	frame          what a TUN queue gives or takes: an inner packet, or a super-frame
//	super-frame    up to 64 KiB of one TCP or UDP flow under one header, to be cut into equal segments
//	segment        one inner packet cut out of a super-frame; the last of a super-frame may be shorter
//	datagram       a UDP payload: exactly one inner packet
//	train          datagrams of one size for one node that the kernel sends or delivers in one message;
//	               the last may be shorter
//
// Everything here is pure: no descriptor, no goroutine, no clock, no log.
package encap
