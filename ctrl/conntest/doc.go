// Package conntest tests the connectivity between nodes, and between their pods.
//
//	        the tested node                          another node
//	┌────────────────────────────┐          ┌────────────────────────────┐
//	│  Run ──── pod (a Pod) ─────┼─ overlay ┼───── pod: Server           │
//	│    └───── host ────────────┼──────────┼───── host: Server          │
//	└────────────────────────────┘          └────────────────────────────┘
//
// A [Pod] is a network namespace that is connected to its node as pods are. A [Server] answers in
// such a pod, or in a pod of Kubernetes, and on the host. [Run] sends packets from a pod and from
// its host to the servers and returns a [Result] per node, family and check. It runs all checks of
// a node at once, and then explains the failures by comparing them: explain.go has these rules.
//
// Nodes without a server are tested as far as their kernels answer.
package conntest
