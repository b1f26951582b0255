// Package etcd is the lease store that flannel's nodes use too: an etcd v3 cluster. Its keys and values are flannel's,
// so both kinds of node share one cluster. They are so byte for byte but for two things in clusters of two families: a
// node publishes its IPv6 address whatever the backend is, where flannel's udp, ipip and alloc write null and look at none,
// and the IPv6 port of a single WireGuard device is the one that it listens on.
//
//	<prefix>/config                       the network config, written by people
//	<prefix>/subnets/10.5.1.0-24          a lease: {"PublicIP":"192.0.2.1","PublicIPv6":null}, on an etcd lease of
//	                                      24 h; without an etcd lease it is a reservation, which never expires
//	<prefix>/subnets/10.5.1.0-24&fd10:5:0:40::-64                          a lease of both families
//	<prefix>/weft/owners/10.5.1.0-24      ours alone: {"id":"…","node":"host"}, on an etcd lease of 15 s
//
// The owner key says that the daemon of a lease is alive and which one it is. With it a second node with the same
// public IP is refused, and a daemon that comes back after a crash is not. It lies outside <prefix>/subnets because
// flannel drops all its peers at a key there that it cannot read. An etcd role that covers <prefix>/ lets the daemon have
// all this; with one that is enough for flannel it goes on without owner keys, as flannel does.
//
// A claim is one transaction: if the subnet's key and its owner key are still what they were when listed, put both.
// The answer carries the list after the put, and whoever finds there that an earlier key overlaps with its own (two
// families make one key, so two keys can share a subnet) takes its key back and tries another subnet.
//
// Watch trusts no silence: beside the stream it compares a fingerprint of the server's data with its own list. In an etcd
// that is ours alone that is a count (1 ms of etcd's CPU with 5,000 leases, most of it what any request costs); where
// others write too, a sort follows it (7 ms).
package etcd
