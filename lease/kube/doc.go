// Package kube stores leases in the Node objects of a Kubernetes cluster, as flannel does with
// --kube-subnet-mgr.
//
// The cluster assigns pod CIDRs to each node, one per family, so this store allocates nothing. A
// node publishes its attributes for other nodes as annotations, whose names begin with a prefix
// (flannel.alpha.coreos.com by default):
//
//	<prefix>/backend-type           vxlan, host-gw, ...; empty for udp
//	<prefix>/backend-data           JSON for the backend; null if it publishes none
//	<prefix>/backend-v6-data        the same for IPv6
//	<prefix>/public-ip              address at which other nodes reach this one
//	<prefix>/public-ipv6
//	<prefix>/kube-subnet-manager    true; nodes without it have no lease
//
// A dual-stack node publishes its IPv6 address with every backend; flannel does not with udp, ipip
// or alloc. An administrator may set:
//
//	<prefix>/public-ip-overwrite    published instead of the node's own address
//	<prefix>/public-ipv6-overwrite
//	<prefix>/node-public-ip         used like --public-ip, at start
//	<prefix>/node-public-ipv6
//
// A client-go reflector follows the other nodes and updates a cache of leases, one per node: no
// event queue can overflow, and complete Node objects are not retained. Lists come from the API
// server's cache; after an outage the watch resumes at the last resource version.
//
// The network config is a file (net-conf.json, from a mounted ConfigMap). The node condition
// NetworkUnavailable tells the scheduler whether pods of this node can reach those of other nodes.
//
// This is the only package that imports client-go.
package kube
