// Package capture records packets on their way through the dataplane, and writes them as pcapng.
//
//	worker i --Packet, Datagram--> ring i --+
//	                                        +--> Session.Run --> Sink
//	AF_PACKET socket (Listen) ---> ring 0 --+
//
// A Session has one ring per worker. The worker is the ring's only writer: it applies the filter,
// copies packets that match, and never waits: if the ring is full, the packet is counted as missed
// and goes on. Run is the only reader.
//
// # Terms
//
//   - point: where a packet was seen. At the inner point it is as pods send and receive it; at the
//     outer point it is a datagram of the underlay, with headers that are rebuilt from the socket's
//     addresses, since a socket does not show them.
//   - verdict: the fate of the packet: forwarded, or the name of the reason for dropping it.
//   - missed: matched the filter, but lost to the capture because the reader was too slow.
package capture
