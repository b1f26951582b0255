// Package netfilter keeps the packet filter rules that pods need on this host: masquerading of
// traffic that leaves the cluster, forwarding between pods, preserved pod source addresses between
// nodes, and no connection tracking for tunnel packets.
//
// [Desired] is the wanted state as a value. A [Manager] compares it with the kernel's rules when
// the kernel reports a change and every few seconds, since changes of legacy iptables are not
// reported. It repairs the differences: rules that are missing, duplicate, out of order, or placed
// after a rule that bypasses them. The example of [Manager] shows its use.
//
// # The rules
//
// C is the cluster's network, P this node's subnet, M multicast (224.0.0.0/4, ff00::/8). Rules 1 to
// 10 are flannel's, under flannel's names, so that either daemon can take over from the other.
//
//	#      iptables: table, chain  match                   verdict              nftables: chain
//	1      nat POSTROUTING                                 to FLANNEL-POSTRTG   (hook, srcnat)
//	2      nat FLANNEL-POSTRTG     mark 0x4000             return               postrtg
//	3                              -s P -d C               return
//	4                              -s C -d P               return
//	5                              ! -s C -d P             return
//	6                              -s C ! -d M             masquerade
//	7                              ! -s C -d C             masquerade
//	8      filter FORWARD                                  to FLANNEL-FWD       (hook, filter)
//	9,10   filter FLANNEL-FWD      -s C; -d C              accept               forward
//	11     nat POSTROUTING                                 to WEFT-KEEP-SOURCE  (hook, srcnat - 1)
//	12,13  nat WEFT-KEEP-SOURCE    mark 0x4000; -s P -d P  return               keep-source
//	14,15                          -s P -d C; -s C -d P    keep the source
//	16,17  raw PREROUTING, OUTPUT  own address, UDP port   do not track         prerouting, output
//	18     mangle FORWARD          -s C ! -d C, UDP port   count and drop       tunnel-forward
//	19     mangle INPUT            -s C, UDP port          count and drop       tunnel-input
//	20     filter DOCKER-USER                              to WEFT-DOCKER
//	21     filter WEFT-DOCKER      -s P -d P               return
//	22                             -s C -d P               accept
//
// Rules 11 to 15 are the guard. With iptables they exist only while another rule of POSTROUTING
// would rewrite pods' source addresses, such as dockerd's, or jumps to a chain that might, such as
// those of CNI plugins and firewalld. Rule 11 stands in front of that rule, and rules 14 and 15
// accept the packet, which suffices because that rule is in the nat table too. With nftables the
// guard always exists. A verdict there does not end the address translation of other tables, so
// rules 14 and 15 translate the source to itself, which does. Either way a connection keeps the
// source it started with.
//
// Rules 20 to 22 exist only while dockerd's chain DOCKER-USER does. From version 28 on, dockerd
// drops new connections to its containers' ports in front of rule 8, except to published ones.
//
// In nftables the rules live in flannel's tables, ip flannel-ipv4 and ip6 flannel-ipv6, without the
// comments that flannel gives tables and chains. Rule 5 means the same as in iptables (flannel's
// nftables version returns all traffic from outside P to C, which disables rule 7), and the mark is
// compared under its mask.
//
// # Where the rules are
//
// With iptables, of two variants of the programs the one that the host uses is taken. Without a
// program, the rules are written into the tables of iptables-nft over netlink if other programs
// use these, in the form that its programs list. Else nftables carries them.
//
// # Drops by other programs
//
// Rules 9 and 10 cannot accept a packet that another base chain drops. Status.Blocked lists the
// chains at the forward hook that certainly drop new connections of pods, by policy or by a rule:
// those of all nftables tables, which include iptables-nft's, and that of legacy iptables, which is
// read without its program. Chains that may accept the packets under a condition that is not
// understood are listed in the notes.
//
// # Ownership
//
// One host may run several daemons, weftd or flanneld, each with its own network. They share the
// chains and tables above. A rule in these chains, or in a built-in chain with one of the comments
// of Weft or flannel, is a managed rule. It belongs to the daemon whose network or subnet it names,
// no matter which daemon added it. Rules 16 and 17 name the network in their comment, because two
// daemons may use the same address and port.
//
// A daemon treats managed rules as follows:
//
//   - Rules that name its own networks are its own. Those no longer wanted are removed.
//   - Rules that name another network are other daemons' rules. They stay, in their order.
//   - Jumps and rules 2 and 12 name no network. They stay as long as any daemon has rules in their
//     chain.
//   - Any other rule without a network is removed if the daemon has rules in the chain.
//
// All rules of other programs are foreign. They stay as they are, in their order.
//
// Rules of earlier runs are recognized by the networks and subnets in Options.Previous, and count
// as the daemon's own. Rules of a daemon that never returns stay until [Cleanup], which removes the
// rules of all daemons.
//
// Rules are added and deleted one by one. Flushing and refilling a chain would lose rules that
// another daemon added after the chain was listed.
//
// Either iptables or nftables carries the rules, never both. On a change, the new rules are set
// before the old ones are removed, so the host is never without rules.
//
// # Out of scope
//
// Routing and network policy.
package netfilter
