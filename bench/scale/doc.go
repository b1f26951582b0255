// Package scale measures one daemon in a cluster of thousands of nodes that come and go.
//
// The store is a real etcd and the daemon a real one; the other nodes exist as leases only. Their
// public addresses all lead to one socket, which records the address that each packet was sent to.
// So the whole path from a changed lease to a packet is measured, and each packet shows whether the
// daemon knows the node that owns its destination.
package scale
