// Package traffic generates the traffic of the benchmarks: TCP streams, UDP datagrams at a rate,
// round trips and short TCP connections.
//
// The generators open their sockets in network namespaces of a [lab.Lab] and run in this process.
// They use plain blocking sockets, as ordinary programs do, and batched system calls where one call
// per packet would measure the generator. All rates are counted at the receiver.
package traffic
