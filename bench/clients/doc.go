// Package clients measures one etcd with the store clients of many daemons.
//
// The etcd is a real one, in a process of its own. The clients are the daemon's: each has a lease
// manager, a store and a connection, and claims, renews and watches leases. They have no dataplane
// and share a process, so their own CPU time is only an upper bound.
package clients
