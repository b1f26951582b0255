// Package probe measures the paths to other nodes with ICMP echoes: loss, round-trip time and path
// MTU. An echo goes to an address that the kernel of the other node answers by itself, so nodes of
// any implementation can be probed.
//
// A [Prober] works in ticks of one second. Each tick reads the replies to the echoes of the tick
// before, counts the missing ones as lost, and sends the echoes that are due, all in a row. The
// kernel stamps the replies when they arrive, so the round-trip time does not depend on when they
// are read, and the process wakes at most once per second however many nodes there are. Without an
// echo under way or due it sleeps.
//
//	node answers --> an echo per interval (+-10 %), a path MTU check per minute
//	echo lost    --> further echoes in the next ticks
//	three lost   --> unreachable; an echo per interval, later per three
//
// Where the fast path of the kernel carries some packets to a node and the packet engine others,
// the echoes take both ways in turn, and each has its own losses.
//
// In a large cluster each node probes a sample of the others, chosen by a hash of node and process,
// so that every node is in the samples of many others.
package probe
