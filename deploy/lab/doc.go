// Package lab builds a small cluster network on one machine, out of network namespaces, without root and without any
// installed tool, for the demo, the tests and the benchmarks.
//
//	                    the lab's own namespace ("root")
//	       etcd and other servers listen here, on the first address
//	   ┌──────────────────────── under0 ────────────────────────┐      a bridge for each underlay subnet;
//	   │ 172.31.0.1                                             │      root routes between them
//	 eth0 172.31.0.11                                     eth0 172.31.0.12
//	┌──┴─────── node1 ────────┐                        ┌────────┴─ node2 ──────┐
//	│ a daemon, own /run      │                        │                       │
//	│ cni0 10.5.1.1/24        │                        │ cni0                  │
//	└──┬──────────────────┬───┘                        └──┬─────────────────┬──┘
//	 eth0               eth0                             ...
//	┌──┴──────────┐  ┌────┴────────┐
//	│ node1-pod1  │  │ node1-pod2  │
//	└─────────────┘  └─────────────┘
//
// [Run] (for a command) or [Main] (for TestMain) starts the program again as the first process of new mount, network
// and process namespaces, and of a new user namespace if the caller is not root. Nothing that happens inside can reach
// the host, and when that first process ends, for any reason, the kernel ends everything inside with it: processes,
// devices, mounts. Inside, [New] builds the nodes.
//
// A function runs inside a node's or pod's network with [NS.Do], on a thread that is thrown away afterwards. A socket
// that it opens stays in that network and may be used from anywhere. Note that t.Run starts another goroutine, so call
// Do inside the subtest, never around it.
//
// Out of scope: what the traffic is for, and what is measured. This package knows no other package of ours.
package lab
