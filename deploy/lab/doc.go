// Package lab builds a small cluster network on one machine from network namespaces, without root
// and without any installed tool. The namespace tests of every package, weft demo and weft bench
// use it. It stands in deploy because it deploys nodes and pods, as the manifests beside it do;
// nothing that the daemon is built from imports it.
//
//	                    the lab's own namespace ("root")
//	       etcd and other servers listen here, on the first address
//	   ┌──────────────────────── under0 ────────────────────────┐   a bridge per underlay subnet;
//	   │ 172.31.0.1                                             │   root routes between them
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
// [Run] (for a command) or [Main] (for TestMain) starts the program again as the first process of
// new mount, network, PID and IPC namespaces, and of a new user namespace if the caller is not
// root. Nothing inside can reach the host. When that first process exits, for whichever reason,
// the kernel removes everything inside with it: processes, devices, mounts. Inside, [New] builds
// the nodes.
//
// [NS.Do] runs a function inside a node's or pod's network namespace, on a thread that is
// discarded afterwards. A socket that it opens stays in that namespace and may be used from any
// goroutine. Note that t.Run starts another goroutine, so call Do inside the subtest, never around
// it.
//
// Out of scope: the meaning of the traffic, and measuring it. Of Weft's packages, this one imports
// only lease/subnetenv.
package lab
