package cli

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"weft/cmd/control"
	"weft/lease/subnetenv"
)

// iface is a network interface of this host.
type iface struct {
	name     string
	mtu      int
	up       bool
	prefixes []netip.Prefix
}

// interfaces are the network interfaces of this host, and why they could not be read.
type interfaces struct {
	all []iface
	err error
}

// readInterfaces lists the interfaces and their addresses.
func readInterfaces() interfaces {
	list, err := net.Interfaces()
	if err != nil {
		return interfaces{err: err}
	}
	var host interfaces
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			return interfaces{err: err}
		}
		x := iface{name: i.Name, mtu: i.MTU, up: i.Flags&net.FlagUp != 0}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				x.prefixes = append(x.prefixes, p)
			}
		}
		host.all = append(host.all, x)
	}
	return host
}

// named returns the interface with a name.
func (h interfaces) named(name string) (iface, bool) {
	for _, i := range h.all {
		if i.name == name {
			return i, true
		}
	}
	return iface{}, false
}

// bridge returns the interface that holds the gateway address of a subnet: the bridge of pods.
func (h interfaces) bridge(subnet netip.Prefix) (iface, bool) {
	if !subnet.IsValid() {
		return iface{}, false
	}
	gateway := subnetenv.Gateway(subnet)
	for _, i := range h.all {
		for _, p := range i.prefixes {
			if p == gateway {
				return i, true
			}
		}
	}
	return iface{}, false
}

// addMTUs adds the MTUs that a packet between pods meets. Each may be larger than the pods', none
// smaller.
func addMTUs(p *screen, s control.Status, host interfaces) {
	if host.err != nil {
		p.add(false, "MTU", fmt.Sprintf("not read: %v", host.err))
		return
	}
	if s.MTU == 0 {
		return
	}
	var chain []string
	small := false
	add := func(name string, mtu int) {
		chain = append(chain, fmt.Sprintf("%s %d", name, mtu))
		small = small || mtu < s.MTU
	}
	add("pods", s.MTU)
	if s.Lease != nil {
		if b, ok := host.bridge(s.Lease.Subnet); ok {
			add("bridge "+b.name, b.mtu)
		}
	}
	for dev := range strings.FieldsSeq(s.Device) {
		if d, ok := host.named(dev); ok {
			add(dev, d.mtu)
		} else {
			chain, small = append(chain, dev+" is missing"), true
		}
	}
	if s.Interface != nil {
		add(s.Interface.Name, s.Interface.MTU)
	}
	text := strings.Join(chain, ", ")
	if small {
		text += ": smaller than the pods'"
	}
	p.add(small, "MTU", text)
}
