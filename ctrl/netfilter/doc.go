// Package netfilter keeps the packet filter rules that pods need on this host: masquerading towards the world, forwarding
// between pods, pods' source addresses kept between nodes, and our own packets left out of connection tracking.
//
// [Desired] is the wanted state as values; a [Manager] compares it with the kernel's rules every few seconds and sets
// right what differs: rules that are missing, double, out of order, or placed where another rule makes them void.
//
//	m := netfilter.New(netfilter.Options{Log: log, Resync: 5 * time.Second})
//	go m.Run(ctx)           // nothing happens before the first Set; rules stay when ctx ends
//	m.Set(netfilter.Desired{ // again whenever something of it changes
//		Nets:       []netfilter.Net{{Network: network, Subnet: subnet}},
//		Masquerade: true, KeepSource: true, Forward: true,
//		NoTrack: []netip.AddrPort{underlay},
//	})
//	m.Status()              // InPlace for readiness
//	netfilter.Cleanup(ctx)  // removes all of it, siblings' rules too
//
// # The rules
//
// C is the cluster's network, P this node's subnet, M multicast (224.0.0.0/4, ff00::/8). Rules 1 to 10 are flannel's,
// under flannel's names, so that either daemon takes over from the other.
//
//	 #       iptables: table, chain          match                  verdict              nftables: chain
//	 1       nat POSTROUTING                                        to FLANNEL-POSTRTG   (hook of postrtg, srcnat)
//	 2       nat FLANNEL-POSTRTG             mark 0x4000            return               postrtg
//	 3                                       -s P -d C              return
//	 4                                       -s C -d P              return
//	 5                                       ! -s C -d P            return
//	 6                                       -s C ! -d M            masquerade
//	 7                                       ! -s C -d C            masquerade
//	 8       filter FORWARD                                         to FLANNEL-FWD       (hook of forward, filter)
//	 9, 10   filter FLANNEL-FWD              -s C; -d C             accept               forward
//	11       nat POSTROUTING, in front                              to WEFT-KEEP-SOURCE  (hook of keep-source, srcnat - 1)
//	12, 13   nat WEFT-KEEP-SOURCE            mark 0x4000; -s P -d P return               keep-source
//	14, 15                                   -s P -d C; -s C -d P   keep the source
//	16, 17   raw PREROUTING, raw OUTPUT      own address, UDP port  do not track         prerouting, output
//
// With iptables the rules 11 to 15 are there only while another rule of POSTROUTING would rewrite pods' sources, such as
// dockerd's, or leads to a chain that might, such as those of CNI plugins and firewalld; accepting in front of
// it is enough, as long as that rule is in the nat table too. With nftables they are always there, since no verdict ends
// another table's translation: they translate the source to itself, which does.
// Either way a connection keeps the source that it began with.
//
// In nftables the rules live in flannel's tables, ip flannel-ipv4 and ip6 flannel-ipv6, without the comments that flannel
// gives tables and chains. Rule 5 means the same as in iptables (flannel's own returns all from outside P to C, which makes
// rule 7 void), and the mark is compared under its mask. What another table drops no rule of ours can accept; a note in
// [Status] says where that is so.
//
// # Whose rules
//
// A host may have several daemons, weftd or flanneld, each with a network of its own; the chains and tables above are
// shared. A rule in them, or in a built-in chain with one of our comments, belongs to the daemon whose network or subnet
// it names, whoever made it. Rules 16 and 17 name it in their comment, because two daemons may have one address and port.
// What another network's rules name is a sibling's and stands, in its order; so do the rules that name none, which are the
// jumps and rules 2 and 12, for as long as anybody has rules in their chain. Any other rule without a network in these
// chains is removed by whoever has rules there. Everything else is left alone, including the order of it.
//
// What an earlier run left is found by the network and subnet that it had, in Options.Previous. What a daemon left that
// never comes back stays until [Cleanup], which removes the rules of all.
//
// Rules are added and deleted one by one: a chain that is emptied and filled again would lose what a sibling put there
// since we looked.
//
// Exactly one of iptables and nftables carries the rules. When that changes, the new ones are set first and then the old
// ones removed, so that there is no moment without any.
//
// # Not here
//
// Which packets are sent through which device, and what a policy for pods would say about them.
package netfilter
