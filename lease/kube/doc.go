// Package kube keeps leases where flannel does with --kube-subnet-mgr: on the Node objects of a Kubernetes cluster.
//
// The cluster gives each node its pod CIDRs, one a family, so nothing is allocated here. A node publishes what the others
// have to know of it as annotations, whose names all begin with a prefix (flannel.alpha.coreos.com by default):
//
//	<prefix>/backend-type           vxlan, host-gw, ...; empty for udp
//	<prefix>/backend-data           JSON that the backend understands; null if it publishes none
//	<prefix>/backend-v6-data        the same for IPv6
//	<prefix>/public-ip              address to send to
//	<prefix>/public-ipv6
//	<prefix>/kube-subnet-manager    true; nodes without it have no lease
//
// (a node of two families publishes its IPv6 address whatever the backend is; flannel with udp, ipip or alloc does not)
// and reads what an administrator may set:
//
//	<prefix>/public-ip-overwrite    published instead of our own address
//	<prefix>/public-ipv6-overwrite
//	<prefix>/node-public-ip         taken like --public-ip, at the start
//	<prefix>/node-public-ipv6
//
// Other nodes are followed by a client-go reflector that feeds a roster of leases, one a node: there is no queue of events
// that could fill, and the Node objects are not kept. Lists come from the API server's cache; after an outage the watch
// goes on where it broke off.
//
// The network config is a file (net-conf.json, a mounted ConfigMap). The node condition NetworkUnavailable tells the
// scheduler whether pods of this node can reach others.
//
// This is the only package that imports client-go.
package kube
