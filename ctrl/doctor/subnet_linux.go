package doctor

import (
	"fmt"
	"net/netip"

	"weft/ctrl"
	"weft/lease/subnetenv"
)

// readEnv reads the subnet file. If it cannot be read, the daemon's values take its place, and
// without those, what the kernel's state shows.
func (g gathering) readEnv() {
	g.Env, g.EnvErr = subnetenv.Read(g.options.SubnetFile)
	if g.EnvErr == nil {
		return
	}
	if g.Env = g.daemonEnv(); known(g.Env) {
		return
	}
	g.Missing[fromEnv] = g.EnvErr
	if g.Env = g.kernelEnv(); !known(g.Env) {
		g.Missing[fromSubnet] = fmt.Errorf("%w, and no bridge or device shows it", g.EnvErr)
	}
}

// known reports whether a subnet of pods is known, with its network.
func known(e subnetenv.File) bool {
	return e.Subnet.IsValid() && e.Network.IsValid() || e.Subnet6.IsValid() && e.Network6.IsValid()
}

// daemonEnv returns the subnet file that the daemon's status describes.
func (g gathering) daemonEnv() subnetenv.File {
	d := g.Daemon
	if d.Lease == nil {
		return subnetenv.File{}
	}
	return subnetenv.File{
		Network: d.Network.Network, Subnet: subnetenv.Gateway(d.Lease.Subnet),
		Network6: d.Network.Network6, Subnet6: subnetenv.Gateway(d.Lease.Subnet6),
		MTU: d.MTU, IPMasq: d.Flags["ip-masq"] == "true",
	}
}

// kernelEnv returns the subnet and the network that the addresses and routes of the overlay show.
// The network is the smallest that contains the subnets of all nodes, so it may be too small.
func (g gathering) kernelEnv() subnetenv.File {
	var e subnetenv.File
	for _, name := range g.devices() {
		if l, ok := g.link(name); ok && (e.MTU == 0 || l.MTU < e.MTU) {
			e.MTU = l.MTU
		}
	}
	for _, v6 := range []bool{false, true} {
		subnet := g.bridgeSubnet(v6)
		network := subnet.Masked()
		for _, r := range g.Kernel.Routes {
			if r.Protocol == ctrl.RouteProtocol && r.Dst.Addr().Is6() == v6 && subnet.IsValid() {
				network = join(network, r.Dst)
			}
		}
		if v6 {
			e.Subnet6, e.Network6 = subnet, network
		} else {
			e.Subnet, e.Network = subnet, network
		}
	}
	return e
}

// bridgeSubnet returns the prefix of the bridge of pods: the first address of a bridge with a name
// that CNI plugins use.
func (g gathering) bridgeSubnet(v6 bool) netip.Prefix {
	for _, a := range g.Kernel.Addrs {
		_, isBridge := g.Ports[a.Dev]
		if isBridge && podBridge(a.Dev) && a.Prefix.Addr().Is6() == v6 && !a.Prefix.Addr().IsLinkLocalUnicast() {
			return a.Prefix
		}
	}
	return netip.Prefix{}
}

// join returns the smallest prefix that contains both.
func join(a, b netip.Prefix) netip.Prefix {
	bits := min(a.Bits(), b.Bits())
	for bits > 0 && netip.PrefixFrom(a.Addr(), bits).Masked() != netip.PrefixFrom(b.Addr(), bits).Masked() {
		bits--
	}
	return netip.PrefixFrom(a.Addr(), bits).Masked()
}
