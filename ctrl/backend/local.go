package backend

import (
	"strings"

	"weft/ctrl"
	"weft/ctrl/underlay"
	"weft/lease"
)

// LocalNode is a backend's knowledge of its own node besides the network config. PrepareNode fills
// it.
type LocalNode struct {
	Iface  underlay.Iface
	Device string // the packet engine's device; empty while it does not exist
	// FastPath reports whether this node takes packets of the kernel's fast path.
	FastPath bool
	// Blackhole asks for a route that drops packets to unused addresses of this node's subnet
	// (--ip-blackhole-route).
	Blackhole bool

	// VTEP and VTEP6 are the Ethernet addresses of existing VXLAN devices. If zero, they are
	// derived from the node's public address, so that they survive a reboot.
	VTEP, VTEP6 ctrl.MAC
	// PrivateKey is the WireGuard private key.
	PrivateKey ctrl.Key
	// FOU reports whether the kernel can carry the udp backend; if not, FOUUnavailable is the
	// reason.
	FOU            bool
	FOUUnavailable string
	// Startup is the output of the extension backend's PreStartupCommand.
	Startup string
}

// LocalOptions are the settings of a node that do not come from the network config.
type LocalOptions struct {
	// KeyFile holds WireGuard's private key in base64. It is created if it does not exist.
	KeyFile   string
	Blackhole bool // --ip-blackhole-route
}

// kernel is the part of ctrl.Kernel that PrepareNode uses.
type kernel interface {
	// Links lists the devices.
	Links() ([]ctrl.Link, error)
	// ProbeFOU reports why the kernel cannot create the device t; unavailable is empty if it can.
	ProbeFOU(t ctrl.IPIP) (unavailable string, err error)
}

// PrepareNode collects the network's backend's knowledge of this node: state kept over restarts and
// features of the kernel. It has side effects: it may create the WireGuard key file, load the
// kernel module fou and run the extension backend's PreStartupCommand.
//
// Call it once per network config and keep the result, because a backend made for a new interface
// address has to publish the same keys and addresses as before. The caller updates Iface and
// Device, and calls Restore with the first published attributes if no device existed yet.
func PrepareNode(k kernel, n lease.Network, i underlay.Iface, o LocalOptions) (LocalNode, error) {
	l := LocalNode{Iface: i, Blackhole: o.Blackhole}
	var err error
	if d := backends()[strings.ToLower(n.Backend.Type)]; d.prepare != nil {
		err = d.prepare(k, n, &l, o)
	}
	return l, err
}

// Restore takes over addresses that this node published before, in this run or an earlier one,
// where no device has them yet: peers may still use them.
func (l *LocalNode) Restore(previous lease.Attrs) {
	if d := backends()[previous.BackendType]; d.restore != nil {
		d.restore(l, previous)
	}
}

// attrs returns the lease attributes of a backend without data of its own.
func (l LocalNode) attrs(leaseType string) lease.Attrs {
	return lease.Attrs{PublicIP: l.Iface.Public, PublicIPv6: l.Iface.Public6,
		BackendType: leaseType}
}
