// Package lease answers one question: which node owns which pod subnet?
//
// A [Store] keeps the leases of all nodes (etcd, a static file, the Kubernetes API). The [Manager]
// holds one lease in a store while the daemon runs and reports the whole state after every change:
//
//	        Claim                 Renew before expiry
//	no lease ─────► lease held ◄──────────────────────┐
//	  ▲               │   │ └──────────────────────────┘
//	  │ missing, or   │   └─ Watch: a complete Snapshot per change
//	  │ another's     ▼
//	  └──────── claim again, the same subnet first
//
// The package reports state, never events: a missed, duplicate or late message from a store is
// harmless because the next one replaces it.
//
// [Choose] is the allocator used by stores that do not allocate subnets themselves (etcd). The
// package knows nothing of packets, devices or routes. It opens no files or sockets and starts only
// the goroutine that Run waits for.
package lease
