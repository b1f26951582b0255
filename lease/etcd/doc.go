// Package etcd implements the lease store that flannel's nodes use, an etcd v3 cluster. Its keys
// and values are flannel's, so both kinds of node can share a cluster. They are identical byte for
// byte, except in dual-stack clusters, in two points: a node publishes its IPv6 address with every
// backend, where flannel's udp, ipip and alloc write null and ignore the field; and the IPv6 port
// of a single WireGuard device is the port that it listens on.
//
//	<prefix>/config                       the network config, written by operators
//	<prefix>/subnets/10.5.1.0-24          a lease: {"PublicIP":"192.0.2.1","PublicIPv6":null},
//	                                      with an etcd lease of 24 h; without one it is a
//	                                      reservation, which never expires
//	<prefix>/subnets/10.5.1.0-24&fd10:5:0:40::-64          a dual-stack lease
//	<prefix>/weft/owners/10.5.1.0-24      Weft only: {"id":"…","node":"host"}, with an etcd
//	                                      lease of 30 s
//	<prefix>/weft/nodes/10.5.1.0-24       Weft only: {"id":"…","node":"host","fastPath":true},
//	                                      with the etcd lease of the lease
//
// The owner key shows that the daemon that holds a lease is alive. It allows Weft to refuse a
// second node with the same public IP but accept a daemon that restarts after a crash.
//
// The node record shows whose a lease is for as long as the lease lasts. A node that comes back
// with another address finds its former lease by the daemon's ID or, after a boot, by its host
// name: it keeps its subnet, and no lease is left over for a day. A lease is not taken over by host
// name while its daemon runs, nor if several nodes have the name. Other nodes read there the host
// name, and whether the node takes packets of the fast path.
//
// Both lie outside <prefix>/subnets because flannel drops all its peers if it finds an unreadable
// key there. Leases and node records are adjacent in etcd's order, so one request lists both and
// one stream watches them. An etcd role for <prefix>/ permits all of this; with a role that
// suffices for flannel only, the daemon works without keys of its own, as flannel does.
//
// A claim is one transaction: if the subnet's key and its owner key have not changed since they
// were read, put them and the node record. The response has the keys written since the list that
// may overlap the new one: a dual-stack lease has one key, so two different keys can share a
// subnet. A daemon that finds such a key deletes its own and tries another subnet. The claim of a
// lease that is stored already, after a restart, writes the owner key only, and a renewal nothing:
// they extend the etcd lease of the lease, so other nodes have no change to handle.
//
// A daemon lists all leases once, when it claims. Watch continues that list, and its own after an
// outage, from the changes since, unless the own key shows that etcd has other data.
//
// Watch does not rely on the stream alone: it also compares a fingerprint of the server's data with
// its list. In an etcd that only Weft writes to, the fingerprint is a count (1 ms of etcd's CPU
// with 5,000 leases, mostly the fixed cost of a request); if other clients write too, a sort
// follows (7 ms).
package etcd
