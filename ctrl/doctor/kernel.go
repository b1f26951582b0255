package doctor

import (
	"fmt"
	"slices"
	"strings"
)

func kernelChecks() []check {
	return []check{
		{name: "ip-forward-off", needs: []source{fromSubnet}, find: findForwardOff},
		{name: "device-forwarding-off", needs: []source{fromSubnet, fromKernel}, find: findDeviceForwardOff},
		{name: "ipv6-disabled", needs: []source{fromSubnet, fromKernel}, find: findIPv6Disabled},
		{name: "rp-filter-strict", needs: []source{fromSubnet, fromKernel}, find: findStrictRPFilter},
		{name: "br-netfilter-missing", needs: []source{fromFilter}, find: findNoBridgeFilter},
		{name: "conntrack-full", needs: []source{fromHost}, find: findConntrackFull},
		{name: "neighbour-table-full", needs: []source{fromKernel}, find: findNeighboursFull},
	}
}

// setSysctl returns the command and the fix that set a sysctl.
func setSysctl(name, value string) (remedy string, fix []Setting) {
	return fmt.Sprintf("sysctl -w %s=%s, and in a file of /etc/sysctl.d", name, value),
		[]Setting{{"/proc/sys/" + sysctlPath(name), value}}
}

// forwardSysctl returns the switch of the kernel's forwarding as a whole.
func (f *Facts) forwardSysctl() string {
	if f.subnet().Addr().Is6() {
		return "net.ipv6.conf.all.forwarding"
	}
	return "net.ipv4.ip_forward"
}

func findForwardOff(f *Facts) []Finding {
	name := f.forwardSysctl()
	if value, ok := f.sysctl(name); !ok || value != "0" {
		return nil
	}
	remedy, fix := setSysctl(name, "1")
	return []Finding{{
		Evidence: name + " is 0",
		Cause:    "another program has turned forwarding off, so the kernel drops packets from and to pods",
		Remedy:   remedy, Fix: fix,
	}}
}

func findDeviceForwardOff(f *Facts) []Finding {
	if f.subnet().Addr().Is6() { // forwarding of a device does not decide there
		return nil
	}
	if value, _ := f.sysctl(f.forwardSysctl()); value == "0" {
		return nil // turns off all devices
	}
	var out []Finding
	devices := slices.Concat(f.devices(), f.bridges())
	if u := f.underlay(); u != "" && f.backend() == "host-gw" {
		devices = append(devices, u)
	}
	for _, dev := range devices {
		name := sysctlName("net.ipv4.conf.%s.forwarding", dev)
		if value, ok := f.sysctl(name); !ok || value != "0" {
			continue
		}
		remedy, fix := setSysctl(name, "1")
		out = append(out, Finding{
			Evidence: name + " is 0",
			Cause:    "another program has turned forwarding off on " + dev + ", so packets that arrive there are dropped",
			Remedy:   remedy, Fix: fix,
		})
	}
	return out
}

// findIPv6Disabled looks at the devices that IPv6 packets of pods pass. Turning IPv6 off removes a
// device's addresses, so the bridge is found by its name.
func findIPv6Disabled(f *Facts) []Finding {
	if !f.V6 {
		return nil
	}
	devices := slices.Concat(f.devices(), f.bridges())
	if f.outer6() {
		devices = append(devices, f.underlay())
	}
	for name := range f.Ports {
		if podBridge(name) && !slices.Contains(devices, name) {
			devices = append(devices, name)
		}
	}
	var out []Finding
	for _, dev := range devices {
		name := sysctlName("net.ipv6.conf.%s.disable_ipv6", dev)
		if value, ok := f.sysctl(name); !ok || value != "1" {
			continue
		}
		remedy, fix := setSysctl(name, "0")
		out = append(out, Finding{
			Evidence: name + " is 1",
			Cause:    "another program has turned IPv6 off on " + dev + ", which removes its IPv6 addresses and routes",
			Remedy:   remedy + "; then restart the daemon, and for the bridge recreate the pods", Fix: fix,
		})
	}
	return out
}

// findStrictRPFilter looks for devices on which packets arrive although the route to their source
// uses another device. Only then does strict filtering drop them.
func findStrictRPFilter(f *Facts) []Finding {
	all, _ := f.number("net.ipv4.conf.all.rp_filter")
	const strict = 1
	var out []Finding
	for _, n := range f.Nodes {
		arrives := f.underlay()
		if arrives == "" || n.Underlay.Err != nil || n.Underlay.Dev == arrives || n.Underlay.Local ||
			!n.Public.Is4() {
			continue
		}
		name := sysctlName("net.ipv4.conf.%s.rp_filter", arrives)
		if own, _ := f.number(name); max(all, own) != strict {
			continue
		}
		remedy, fix := setSysctl(name, "2")
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s is strict (1), and the route to %s (%s) uses %s", name, n.Public,
				n.Name, n.Underlay.Dev),
			Cause: "packets of that node arrive on " + arrives + " and are dropped, as the way back is another",
			Remedy: remedy + "; or correct the route: " +
				fmt.Sprintf("ip route get %s", n.Public),
			Fix: fix,
		})
	}
	return out
}

func findNoBridgeFilter(f *Facts) []Finding {
	if !slices.Contains(f.Filter.Chains, "KUBE-SERVICES") {
		return nil
	}
	name := "net.bridge.bridge-nf-call-iptables"
	value, ok := f.sysctl(name)
	if ok && value != "0" {
		return nil
	}
	remedy, fix := setSysctl(name, "1")
	evidence := name + " is 0, and kube-proxy's rules exist"
	if !ok {
		evidence = "/proc/sys/net/bridge does not exist, and kube-proxy's rules do"
		remedy, fix = "modprobe br_netfilter, and br_netfilter in a file of /etc/modules-load.d", nil
	}
	return []Finding{{
		Evidence: evidence,
		Cause: "packets between pods of one node bypass kube-proxy's rules, so a Service answers such a " +
			"pod from the wrong address",
		Remedy: remedy, Fix: fix,
	}}
}

// fullShare is the share of a table above which it counts as full: bursts fill the rest at once.
const fullShare = 0.9

func findConntrackFull(f *Facts) []Finding {
	const limitName = "net.netfilter.nf_conntrack_max"
	count, ok := f.number("net.netfilter.nf_conntrack_count")
	limit, okLimit := f.number(limitName)
	if !ok || !okLimit || limit == 0 || float64(count) < fullShare*float64(limit) {
		return nil
	}
	evidence := fmt.Sprintf("%d of %d connections tracked", count, limit)
	if n := f.Drops["nf_conntrack"]; n > 0 {
		evidence += fmt.Sprintf(", %d packets dropped since the boot", n)
	}
	remedy, _ := setSysctl(limitName, fmt.Sprint(2*limit))
	return []Finding{{
		Evidence: evidence,
		Cause:    "the table of connection tracking is full: the kernel drops packets of new connections at random",
		Remedy:   remedy + "; conntrack -S and conntrack -L show who fills it",
	}}
}

func findNeighboursFull(f *Facts) []Finding {
	family := "ipv4"
	if f.subnet().Addr().Is6() {
		family = "ipv6"
	}
	limitName := "net." + family + ".neigh.default.gc_thresh3"
	limit, ok := f.number(limitName)
	count := 0
	for _, n := range f.Neighbours {
		// The kernel does not count permanent entries, such as those of a VXLAN device.
		if !n.Permanent && n.IP.Is6() == f.subnet().Addr().Is6() {
			count++
		}
	}
	if !ok || limit == 0 || float64(count) < fullShare*float64(limit) {
		return nil
	}
	remedy, _ := setSysctl(limitName, fmt.Sprint(4*limit))
	return []Finding{{
		Evidence: fmt.Sprintf("%d neighbour entries, the limit is %d", count, limit),
		Cause: "the neighbour table is full (\"neighbour table overflow\" in dmesg), so addresses of pods " +
			"and nodes are not resolved",
		Remedy: remedy,
	}}
}

// listed joins names for a sentence.
func listed(names []string) string { return strings.Join(names, ", ") }
