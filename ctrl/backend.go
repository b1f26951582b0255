package ctrl

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"weft/lease"
)

// Backend turns leases into wanted kernel state. It is a pure value: no kernel, no clock, safe for concurrent use.
type Backend interface {
	// Plan is the state that carries traffic from self to all. all may hold self, which is skipped.
	Plan(self lease.Lease, all []lease.Lease) State
	// Spec says what the daemon publishes and runs for this backend.
	Spec() Spec
}

// Spec is what a backend asks of the daemon.
type Spec struct {
	Type string // as in the network config, lower case
	// LeaseType, Data and DataV6 go into our lease: BackendType, BackendData and BackendV6Data.
	LeaseType    string
	Data, DataV6 json.RawMessage
	MTU          int  // bytes, for subnet.env and pods
	Userspace    bool // the packet engine has to run
	Port         int  // UDP port of the udp backend, 0 for others
}

// Self is what a backend has to know of its own node beside the network config. Kernel.Self fills it.
type Self struct {
	Iface  Iface
	Device string // the packet engine's device; empty while there is none
	// Blackhole asks for a route that drops what is for our own subnet and for no pod (--ip-blackhole-route).
	Blackhole bool

	// VTEP and VTEP6 are the Ethernet addresses of VXLAN devices that are there already; zero: derived from the address
	// of the node, so that they outlive a reboot.
	VTEP, VTEP6 MAC
	// PrivateKey is that of WireGuard.
	PrivateKey Key
	// FOU says whether the kernel can carry the udp backend; if not, NoFOU says why.
	FOU   bool
	NoFOU string
	// Startup is what the extension backend's PreStartupCommand printed.
	Startup string
}

// maker makes a backend from the network config.
type maker func(n lease.Network, s Self) (Backend, error)

// makers are the backends by their names in the config.
func makers() map[string]maker {
	return map[string]maker{
		"alloc":     newAlloc,
		"extension": newExtension,
		"host-gw":   newHostGW,
		"ipip":      newIPIP,
		"udp":       newUDP,
		"vxlan":     newVXLAN,
		"wireguard": newWireGuard,
	}
}

// NewBackend makes the backend that the network config names. The error names the key that is wrong and what is
// allowed. It touches nothing, so it may be called again whenever the interface or the device changes.
func NewBackend(n lease.Network, s Self) (Backend, error) {
	known := makers()
	typ := strings.ToLower(n.Backend.Type)
	make, ok := known[typ]
	if !ok {
		names := slices.Sorted(maps.Keys(known))
		return nil, fmt.Errorf("unknown backend type %q; known are %s", n.Backend.Type, strings.Join(names, ", "))
	}
	b, err := make(n, s)
	if err != nil {
		return nil, fmt.Errorf("%s backend: %w", typ, err)
	}
	if s.Blackhole {
		b = blackhole{Backend: b, network: n}
	}
	return b, nil
}

// blackhole adds the route of --ip-blackhole-route to a backend's plan.
type blackhole struct {
	Backend
	network lease.Network
}

// blackholeMetric makes the route lose against the pod bridge's own route of the same subnet. With equal metrics, as
// flannel has them, the one that came first wins, and a blackhole that did cuts off the node's own pods.
const blackholeMetric = 1 << 20

// Plan is the backend's plan and a blackhole for our own subnet.
func (b blackhole) Plan(self lease.Lease, all []lease.Lease) State {
	s := b.Backend.Plan(self, all)
	s.Networks = networks(b.network)
	for _, f := range families(b.network, self) {
		s.Routes = append(s.Routes, Route{Dst: f.subnet.Masked(), Kind: Blackhole, Metric: blackholeMetric, Protocol: RouteProtocol})
	}
	return s
}

// alloc takes a lease and forwards nothing.
type alloc struct {
	network lease.Network
	mtu     int
}

func newAlloc(n lease.Network, s Self) (Backend, error) { return alloc{n, s.Iface.MTU}, nil }

// Plan wants nothing, so what an earlier backend left goes.
func (a alloc) Plan(lease.Lease, []lease.Lease) State { return State{Networks: networks(a.network)} }

// Spec publishes no backend type, as flannel does.
func (a alloc) Spec() Spec { return Spec{Type: "alloc", MTU: a.mtu} }
