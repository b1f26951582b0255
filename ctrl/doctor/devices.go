package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/ctrl"
)

func deviceChecks() []check {
	return []check{
		{name: "device-missing", needs: []source{fromKernel}, find: findNoDevice},
		{name: "state-contested", needs: []source{fromDaemon, fromProbes}, find: findContested},
		{name: "tunnel-mtu", needs: []source{fromSubnet, fromKernel}, find: findTunnelMTU},
		{name: "pod-mtu", needs: []source{fromEnv, fromKernel}, find: findPodMTU},
		{name: "bridge-subnet", needs: []source{fromSubnet, fromKernel}, find: findBridgeSubnet},
		{name: "bridge-down", needs: []source{fromSubnet, fromKernel}, find: findBridgeDown},
		{name: "arp-off", needs: []source{fromSubnet, fromKernel}, find: findNoARP},
		{name: "netem", needs: []source{fromSubnet, fromKernel}, find: findNetem},
		{name: "tc-filter", needs: []source{fromSubnet, fromKernel}, find: findTCFilter},
		{name: "tc-police", needs: []source{fromSubnet, fromKernel}, find: findTCPolice},
		{name: "former-backend", needs: []source{fromDaemon, fromSubnet, fromKernel}, find: findFormerBackend},
		{name: "vxlan-port-taken", needs: []source{fromKernel}, find: findPortTaken},
		{name: "network-overlaps-underlay", needs: []source{fromSubnet, fromKernel}, find: findOverlap},
	}
}

func findNoDevice(f *Facts) []Finding {
	noLease := f.Missing[fromDaemon] == nil && f.Daemon.Lease == nil // and so no device yet
	if noLease || f.contested() || len(findPortTaken(f)) > 0 {
		return nil
	}
	var out []Finding
	for _, name := range f.devices() {
		l, exists := f.link(name)
		if exists && l.Up {
			continue
		}
		state := "does not exist"
		if exists {
			state = "is down"
		}
		cause := "another program removed or disabled it faster than the daemon repairs it"
		if f.Daemon.Kernel.Error != "" {
			cause = "the daemon cannot set it up: " + f.Daemon.Kernel.Error
		}
		out = append(out, Finding{
			Evidence: "the overlay device " + name + " " + state, Cause: cause,
			Remedy: "ip monitor link shows who changes it; the daemon's log has the reason",
		})
	}
	return out
}

// maxRepairs is the number of repairs during an examination that one change of another program may
// take. It removes a device with its addresses and routes, of which there is one per node.
func (f *Facts) maxRepairs() uint64 { return 10 + 5*uint64(len(f.Nodes)) }

// contested reports whether the daemon repaired more than one change.
func (f *Facts) contested() bool { return f.Repairs > f.maxRepairs() }

// findContested reports a daemon that repairs the same things over and over.
func findContested(f *Facts) []Finding {
	if !f.contested() || len(findStaleEntries(f))+len(findFormerBackend(f)) > 0 {
		return nil
	}
	return []Finding{{
		Evidence: fmt.Sprintf("the daemon repaired devices, routes or rules %d times within %v", f.Repairs,
			f.Took.Round(100*time.Millisecond)),
		Cause:  "another program (NetworkManager, systemd-networkd, a second daemon) undoes the daemon's work",
		Remedy: "ip monitor link address route neigh shows it; exclude the overlay's devices in that program",
	}}
}

func findBridgeDown(f *Facts) []Finding {
	var out []Finding
	for _, name := range f.bridges() {
		if l, ok := f.link(name); ok && !l.Up && len(f.Ports[name]) > 0 {
			out = append(out, Finding{
				Evidence: "the bridge " + name + " of the pods is down",
				Cause:    "another program or an administrator has set it down: no pod of this node reaches anything",
				Remedy:   "ip link set " + name + " up; ip monitor link shows who changes it",
			})
		}
	}
	return out
}

// overhead returns the bytes that a tunnel adds to a packet; ok is false for devices that are not
// tunnels of a known size. The numbers are those of package encap: outer IPv4, UDP, VXLAN and inner
// Ethernet headers.
func overhead(l ctrl.Link, outer6 bool) (bytes int, ok bool) {
	const ip4, ip6, udp, vxlan, ethernet = 20, 40, 8, 8, 14
	ip := ip4
	if outer6 {
		ip = ip6
	}
	switch l.Kind {
	case ctrl.KindTUN:
		return ip + udp, true
	case ctrl.KindVXLAN:
		return ip + udp + vxlan + ethernet, true
	case ctrl.KindIPIP:
		if l.IPIP.FOUPort != 0 {
			return ip + udp, true
		}
		return ip, true
	}
	return 0, false
}

// findTunnelMTU compares the overlay devices with the underlay interface, and the pods' MTU with
// both.
func findTunnelMTU(f *Facts) []Finding {
	under, ok := f.link(f.underlay())
	if !ok {
		return nil
	}
	var out []Finding
	for _, name := range f.devices() {
		l, _ := f.link(name)
		extra, ok := overhead(l, f.outer6())
		if !ok || l.MTU+extra <= under.MTU {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("MTU %d of %s and %d bytes of headers exceed the MTU %d of %s",
				l.MTU, name, extra, under.MTU, under.Name),
			Cause: "tunnel packets of full size do not fit: small packets pass, large transfers hang",
			Remedy: fmt.Sprintf("ip link set %s mtu %d, and restart the daemon so that new pods get it",
				name, under.MTU-extra),
			Fix: []Setting{{"/sys/class/net/" + name + "/mtu", fmt.Sprint(under.MTU - extra)}},
		})
	}
	return out
}

// outer6 reports whether tunnel packets are IPv6.
func (f *Facts) outer6() bool {
	return slices.ContainsFunc(f.Nodes, func(n Node) bool { return n.Public.Is6() })
}

// findPodMTU compares the bridge and its ports with the MTU for pods. The host's end of a pod's
// link has the MTU of the pod's end.
func findPodMTU(f *Facts) []Finding {
	var out []Finding
	for _, bridge := range f.bridges() {
		var large []string
		for _, name := range append([]string{bridge}, f.Ports[bridge]...) {
			if l, ok := f.link(name); ok && l.MTU > f.Env.MTU {
				large = append(large, fmt.Sprintf("%s (%d)", name, l.MTU))
			}
		}
		large = append(large, f.narrowPorts(bridge)...)
		for _, p := range f.Pods {
			if p.MTU > f.Env.MTU {
				large = append(large, fmt.Sprintf("pod %s (%d)", p, p.MTU))
			}
		}
		if len(large) == 0 {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("the MTU of the subnet file is %d, but: %s", f.Env.MTU, listed(large)),
			Cause: "pods send packets that the overlay cannot carry, or the two ends of a pod's link differ: " +
				"large packets are lost",
			Remedy: fmt.Sprintf("recreate the pods of %s; for the bridge: ip link set %s mtu %d", bridge,
				bridge, f.Env.MTU),
		})
	}
	return out
}

// narrowPorts returns the ports of a bridge with an MTU that fewer pods have than ports. Both ends
// of a pod's link have one MTU. It needs a view of all pods.
func (f *Facts) narrowPorts(bridge string) (narrow []string) {
	ports := f.Ports[bridge]
	if len(f.Pods) < len(ports) {
		return nil
	}
	for _, name := range ports {
		l, ok := f.link(name)
		if !ok || l.MTU >= f.Env.MTU {
			continue
		}
		have := 0
		for _, other := range ports {
			if o, _ := f.link(other); o.MTU == l.MTU {
				have++
			}
		}
		for _, p := range f.Pods {
			if p.MTU == l.MTU {
				have--
			}
		}
		if have > 0 {
			narrow = append(narrow, fmt.Sprintf("%s (%d, its pod more)", name, l.MTU))
		}
	}
	return narrow
}

// findBridgeSubnet looks at the bridges that carry an address of the pod network.
func findBridgeSubnet(f *Facts) []Finding {
	var out []Finding
	for _, a := range f.Kernel.Addrs {
		_, isBridge := f.Ports[a.Dev]
		if !isBridge || !f.network().Contains(a.Prefix.Addr()) {
			continue
		}
		if f.subnet().Masked().Contains(a.Prefix.Addr()) {
			if !a.Prefix.IsSingleIP() && a.Prefix.Bits() != f.subnet().Bits() {
				out = append(out, Finding{
					Evidence: fmt.Sprintf("%s has %s, but the prefix of this node's subnet is /%d", a.Dev, a.Prefix,
						f.subnet().Bits()),
					Cause: "the address was set with a wrong netmask, so this host looks for pods of other nodes on " +
						"the bridge, or does not find its own there",
					Remedy: fmt.Sprintf("ip addr add %s dev %s; ip addr del %s dev %s",
						netip.PrefixFrom(a.Prefix.Addr(), f.subnet().Bits()), a.Dev, a.Prefix, a.Dev),
				})
			}
			continue
		}
		cause := "the bridge has the address of a former lease: pods on it are unreachable from other nodes"
		for _, n := range f.Nodes {
			if n.Subnet.Overlaps(a.Prefix) {
				cause += fmt.Sprintf(", and packets to %s (%s) stay on this node", n.Name, n.Subnet)
			}
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s has %s, but this node's subnet is %s", a.Dev, a.Prefix,
				f.subnet().Masked()),
			Cause:  cause,
			Remedy: fmt.Sprintf("ip link delete %s, then restart the pods of this node", a.Dev),
		})
	}
	return out
}

// passed returns the devices that packets between pods and other nodes pass.
func (f *Facts) passed() []string {
	devices := slices.Concat(f.devices(), f.bridges())
	for _, bridge := range f.bridges() {
		devices = append(devices, f.Ports[bridge]...)
	}
	if u := f.underlay(); u != "" {
		devices = append(devices, u)
	}
	return devices
}

// findNoARP looks for Ethernet devices that do not resolve addresses. Overlay devices never do.
func findNoARP(f *Facts) []Finding {
	var out []Finding
	for _, dev := range f.passed() {
		if !slices.Contains(f.NoARP, dev) || ctrl.OverlayName(dev) {
			continue
		}
		out = append(out, Finding{
			Evidence: dev + " has the flag NOARP",
			Cause: "another program has turned the resolution of addresses off there, so neighbours are not " +
				"found once their entries expire",
			Remedy: "ip link set " + dev + " arp on",
		})
	}
	return out
}

func findNetem(f *Facts) []Finding {
	var bad []string
	for _, dev := range f.passed() {
		if slices.Contains(f.Netem, dev) {
			bad = append(bad, dev)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: "queueing discipline netem on " + listed(bad),
		Cause:    "an experiment or a test delays, loses or reorders packets on purpose (tc netem, chaos tools)",
		Remedy:   "tc qdisc show dev " + bad[0] + "; tc qdisc del dev " + bad[0] + " root",
	}}
}

// findFormerBackend looks for overlay devices that the daemon does not use, with an address or a
// route in its network.
func findFormerBackend(f *Facts) []Finding {
	if f.Daemon.Backend == "" {
		return nil
	}
	used := f.devices()
	if f.Daemon.Backend == "host-gw" {
		used = nil
	}
	var out []Finding
	for _, l := range f.Kernel.Links {
		if !ctrl.OverlayName(l.Name) || slices.Contains(used, l.Name) || !f.touches(l.Name) {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s still exists with an address or a route in %s, but the backend is %s",
				l, f.network(), f.Daemon.Backend),
			Cause: "a former backend left it, or a second daemon uses it; its routes take the pods' packets",
			Remedy: fmt.Sprintf("ip link delete %s; weftd cleanup removes all of it before a restart",
				l.Name),
		})
	}
	return out
}

// touches reports whether a device has an address or a route in the pod network.
func (f *Facts) touches(dev string) bool {
	return slices.ContainsFunc(f.Kernel.Addrs, func(a ctrl.Addr) bool {
		return a.Dev == dev && f.network().Contains(a.Prefix.Addr())
	}) || slices.ContainsFunc(f.Kernel.Routes, func(r ctrl.Route) bool {
		return r.Dev == dev && ctrl.Contains([]netip.Prefix{f.network()}, r.Dst)
	})
}

// findPortTaken looks for a program on the port of VXLAN, which keeps the kernel from opening it.
func findPortTaken(f *Facts) []Finding {
	if f.Daemon.Backend != "vxlan" || len(f.Daemon.Kernel.Error) == 0 {
		return nil
	}
	port := f.tunnelPort()
	if !slices.Contains(f.UDPPorts, port) {
		return nil
	}
	return []Finding{{
		Evidence: fmt.Sprintf("a program holds UDP port %d: %s", port, f.Daemon.Kernel.Error),
		Cause:    "the kernel cannot open the port for VXLAN, so the device stays down",
		Remedy:   fmt.Sprintf("ss -ulpn sport = %d; stop that program, or set Port of the backend", port),
	}}
}

// findOverlap looks for addresses of nodes, gateways and of the store inside the pod network.
func findOverlap(f *Facts) []Finding {
	var inside []string
	add := func(what string, a netip.Addr) {
		if f.network().Contains(a) {
			inside = append(inside, what+" "+a.String())
		}
	}
	for _, a := range f.Kernel.Addrs {
		_, isBridge := f.Ports[a.Dev]
		// Plugins as ptp put the pods' gateway on devices of their own.
		pods := isBridge || f.subnet().Masked().Contains(a.Prefix.Addr())
		if !pods && !ctrl.OverlayName(a.Dev) && a.Dev != "lo" {
			add("this node's address on "+a.Dev, a.Prefix.Addr())
		}
	}
	for _, n := range f.Nodes {
		add("the address of "+n.Name, n.Public)
	}
	for _, r := range f.Kernel.Routes {
		if r.Dst.Bits() == 0 && r.Via.IsValid() {
			add("the gateway", r.Via)
		}
	}
	if len(inside) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: fmt.Sprintf("inside the pod network %s: %s", f.network(), listed(inside)),
		Cause:    "the pod network covers the underlay, so packets to these addresses enter the overlay again",
		Remedy:   "choose another Network in the network config, which no other network uses",
	}}
}
