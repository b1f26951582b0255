// Package feature names the features of the kernel that the dataplane uses if they work, and does
// without otherwise.
package feature

import "errors"

// Name is the name of a feature in flags, status and metrics.
type Name string

// The features of the TUN device, the sockets and the workers.
const (
	VnetHeader Name = "tun-vnet-header" // virtio-net header: GSO frames, deferred checksums
	TSO        Name = "tun-tso"         // TCP GSO frames in both directions
	USO        Name = "tun-uso"         // UDP GSO frames in both directions
	GSO        Name = "udp-gso"         // send many datagrams in one message (UDP_SEGMENT)
	GRO        Name = "udp-gro"         // receive many datagrams in one message (UDP_GRO)
	Steering   Name = "flow-steering"   // one socket per inner flow, in both directions
	Buffers    Name = "socket-buffers"  // socket buffers of the configured size
	Priority   Name = "priority"        // raised priority of busy workers
	Slices     Name = "short-slices"    // scheduler slices of 0.1 ms
)

// All returns every feature.
func All() []Name {
	return []Name{VnetHeader, TSO, USO, GSO, GRO, Steering, Buffers, Priority, Slices}
}

// ErrDisabled is the reason for not using a feature that the configuration disables.
var ErrDisabled = errors.New("disabled by configuration")
