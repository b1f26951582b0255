// Package lease answers one question: which node owns which pod subnet?
//
// A [Store] keeps the leases of all nodes (etcd, a static file, the Kubernetes API). The [Manager] holds one
// lease in a store for as long as the daemon runs and tells its caller the whole state after every change:
//
//	        Claim                 Renew before expiry
//	no lease ─────► lease held ◄──────────────────────┐
//	  ▲               │   │ └──────────────────────────┘
//	  │ gone, or      │   └─ Watch: a whole Snapshot a change
//	  │ another's     ▼
//	  └──────── the same subnet is asked for first
//
// What leaves this package is always whole state, never an event, so a missed, doubled or late message from a
// store can do no harm: the next one replaces it.
//
// [Choose] is the pure allocator that stores without an own one (etcd) use. The package knows nothing of packets,
// devices or routes. It opens nothing and starts only the goroutine that Run waits for.
package lease
