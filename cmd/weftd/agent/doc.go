// Package agent runs the node daemon: it connects the lease store, the kernel reconciler, the packet
// filter and the dataplane, and serves their state as subnet.env, /readyz, /status and /metrics.
//
// It is the only place where those packages meet. run.go opens the parts, node.go joins them,
// and view.go publishes the result to the HTTP server.
package agent
