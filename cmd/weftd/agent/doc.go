// Package agent runs the node daemon. It connects the lease store, the kernel reconciler, the
// packet filter and the dataplane, and publishes their state as subnet.env, /readyz, /status,
// /metrics and on the control socket. No other package imports all of those.
//
//	daemon.go      start and stop of the process's parts; one agent per network config
//	open.go        setup of an agent: interface, backend, engine, lease manager
//	agent.go       the loop: events in, desired state out
//	control.go     the control socket; capture.go, top.go and leaseentry.go for its other paths
//	conflicts.go   routes that cut the overlay or the hosts off
//	fastpath.go    whether this node takes packets in the kernel
//	meshprobe.go   echoes to the other nodes
//	droplog.go     log of dropped packets
//	hearing.go     signs of life of other nodes
//	cloud.go       the routes of a cloud's route tables
//	membership.go  log of nodes that join and leave
//	peers.go       other nodes as the engine and the status see them
//	subnetfile.go  subnet.env
//	readiness.go   the conditions of readiness
//	snapshot.go    state for the HTTP server, published by the loop
//	limits.go      sizes for limits of memory, CPU time and descriptors
//	clients.go     bounds of the health server's clients
//	status.go      conversion of the status to metrics; configstatus.go for the flags in it
//	traffic.go     counters of the dataplane for /status and /metrics; kerneltraffic.go for those
//	               of the kernel, sources.go for packets from unknown senders
//	health.go      the HTTP server
//	watchdog.go    systemd's watchdog
//	store.go       the lease stores; cluster.go for Kubernetes
package agent
