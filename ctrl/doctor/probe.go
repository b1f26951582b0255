package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"weft/ctrl"
)

// lossTries is the number of echoes that measure the loss.
const lossTries = 20

func probeChecks() []check {
	needs := []source{fromSubnet, fromKernel, fromProbes}
	return []check{
		{name: "tunnel-port-refused", needs: needs, find: findRefused},
		{name: "path-mtu-blackhole", needs: needs, symptom: true, find: findBlackHole},
		{name: "path-lossy", needs: needs, symptom: true, find: findLossy},
		{name: "checksum-offload", needs: needs, find: findChecksum},
		{name: "anti-spoofing", needs: needs, symptom: true, find: findSpoofing},
		{name: "tunnel-blocked", needs: needs, symptom: true, find: findBlocked},
		{name: "node-down", needs: needs, symptom: true, find: findDown},
	}
}

// silent returns the nodes that answer on the underlay only.
func (f *Facts) silent() []Node {
	var nodes []Node
	for _, n := range f.reachable() {
		if n.Route.Err == nil && n.Probed && n.Probes.Small.Received == 0 && n.Probes.Direct.Received > 0 {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// silence describes the echoes to a node that does not answer through the overlay.
func (n Node) silence() string {
	s := fmt.Sprintf("%s: %d of %d echoes to %s through the overlay answered, %d of %d to %s on the underlay",
		n.Name, n.Probes.Small.Received, n.Probes.Small.Sent, n.Target, n.Probes.Direct.Received,
		n.Probes.Direct.Sent, n.Public)
	if e := n.Probes.Small.Err; e != nil {
		s += "; " + e.Error()
	}
	if n.Probes.Usual.Received > 0 {
		s += "; the fast path's are answered: flows of few packets get through, those in bulk do not"
	}
	return s
}

// refused reports whether an ICMP error answered the datagram to the tunnel port. Other errors, as
// EPERM by a filter of this host, are not that node's.
func (n Node) refused() bool {
	return slices.ContainsFunc([]syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH,
		syscall.ENETUNREACH, syscall.EACCES}, func(e syscall.Errno) bool {
		return errors.Is(n.Probes.Port, e)
	})
}

func findRefused(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.silent() {
		err := n.Probes.Port
		if !n.refused() || n.Underlay.Local { // this host refuses, as it has the address
			continue
		}
		cause := "a firewall on that node or on the way rejects the port"
		remedy := fmt.Sprintf("on %s: accept UDP port %d from the other nodes", n.Name, f.tunnelPort())
		if errors.Is(err, syscall.ECONNREFUSED) {
			cause = "nothing listens there: that node's daemon is not running, has no device or uses another " +
				"port; or its firewall REJECTs the port"
			remedy = "on " + n.Name + ": weft doctor; " + fmt.Sprintf("iptables -S INPUT; ss -ulpn sport = %d", f.tunnelPort())
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("UDP port %d of %s (%s): %v", f.tunnelPort(), n.Name, n.Public, err),
			Cause:    cause, Remedy: remedy,
		})
	}
	return out
}

func findBlocked(f *Facts) []Finding {
	if f.backend() == "host-gw" {
		return nil
	}
	var out []Finding
	for _, n := range f.silent() {
		if n.refused() {
			continue
		}
		evidence, direction := n.silence()+f.unexamined(), "at least one way"
		switch {
		case n.Probes.Received > 0:
			evidence += fmt.Sprintf("; %d tunnel packets of that node arrived meanwhile", n.Probes.Received)
			direction = "from here to there only, or its answers are lost there"
		case n.Probes.Received == 0:
			evidence += "; no tunnel packet of that node arrived meanwhile"
			direction = "both ways, or from there to here"
		}
		out = append(out, Finding{
			Evidence: evidence,
			Cause:    f.blockedCause(direction),
			Remedy:   f.blockedRemedy(n),
		})
	}
	return out
}

func (f *Facts) blockedCause(direction string) string {
	port := f.tunnelPort()
	switch {
	case f.backend() == "wireguard":
		return "a firewall drops UDP port 51820 or 51821 " + direction + ", or that node has another key than " +
			"it publishes, so that there is no handshake"
	case port == 0:
		return "a firewall drops the tunnel's packets " + direction
	case f.backend() == "vxlan" && (port == 8472 || port == 4789):
		return fmt.Sprintf("a firewall drops UDP port %d %s, or the hypervisor takes that port for its own "+
			"network (VMware NSX)", port, direction)
	}
	return fmt.Sprintf("a firewall drops UDP port %d %s, or that node's daemon or host forwards nothing", port, direction)
}

func (f *Facts) blockedRemedy(n Node) string {
	if port := f.tunnelPort(); port != 0 {
		return fmt.Sprintf("weft doctor on %s; tcpdump -ni any udp port %d on both; accept the port in "+
			"firewalls and security groups", n.Name, port)
	}
	return "weft doctor on " + n.Name + "; accept UDP 51820 (wireguard) or IP protocol 4 (ipip) between the nodes"
}

func findSpoofing(f *Facts) []Finding {
	if f.backend() != "host-gw" {
		return nil
	}
	var out []Finding
	for _, n := range f.silent() {
		out = append(out, Finding{
			Evidence: n.silence(),
			Cause: "the network between the nodes drops packets with addresses of pods (anti-spoofing, " +
				"source/destination check of clouds), or that node forwards nothing",
			Remedy: "turn the check off for the machines, add the pod network to their allowed addresses, or " +
				"use a tunnel (vxlan, udp); weft doctor on " + n.Name,
		})
	}
	return out
}

func findBlackHole(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.reachable() {
		p := n.Probes
		if !n.Probed || p.Small.Received == 0 || p.Large.Sent == 0 || p.Large.Received > 0 || n.lossy() {
			continue
		}
		evidence := fmt.Sprintf("%s: echoes of %d bytes are answered, those of %d bytes are not", n.Name,
			echoSize, p.Large.Size)
		cause := "the path is narrower than the interface, and its ICMP errors do not arrive: a path MTU black hole"
		if p.Large.TooBig > 0 {
			evidence += fmt.Sprintf("; a router reports an MTU of %d", p.Large.TooBig)
			cause = "the path is narrower than the interface: pods' packets of full size do not fit"
		}
		out = append(out, Finding{Evidence: evidence, Cause: cause,
			Remedy: "lower the MTU of the interface on all nodes, or set MTU of the backend; accept ICMP " +
				"\"fragmentation needed\" on the way; then restart the pods"})
	}
	return out
}

// maxLoss is the share of echoes that may be lost: one may be by chance.
const maxLoss = 0.1

func (n Node) lossy() bool {
	e := n.Probes.Loss
	return e.Sent >= lossTries && float64(e.Sent-e.Received) > maxLoss*float64(e.Sent)
}

func findLossy(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.reachable() {
		if !n.Probed || !n.lossy() {
			continue
		}
		e := n.Probes.Loss
		lost := e.Sent - e.Received
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s: %d of %d echoes through the overlay were lost", n.Name, lost, e.Sent),
			Cause: "packets are lost on the way: a saturated or faulty link, a limit of the rate (policer), or " +
				"tc netem on one of the nodes",
			Remedy: "weft doctor on " + n.Name + "; ping " + n.Public.String() + " shows whether the underlay " +
				"loses them, ip -s link and tc -s qdisc where",
		})
	}
	return out
}

func findChecksum(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.reachable() {
		p := n.Probes
		if !n.Probed || p.Small.Received == 0 || p.TCP || !p.DirectTCP || n.lossy() {
			continue // what is lost by chance proves nothing
		}
		remedy := "compare tcpdump -vvni any on both nodes; weft doctor on " + n.Name
		if f.backend() == "vxlan" {
			remedy = fmt.Sprintf("ethtool -K %s tx-checksum-ip-generic off on both nodes, or the udp backend",
				listed(f.devices()))
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s answers echoes and TCP on the underlay, but no TCP through the overlay (%s)",
				n.Name, n.Target),
			Cause: "a driver or hypervisor breaks the checksums of TCP in the tunnel (checksum offload), or a " +
				"filter on that node drops TCP from the overlay",
			Remedy: remedy,
		})
	}
	return out
}

func findDown(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.reachable() {
		if !n.Probed || n.Probes.Small.Received > 0 || n.Probes.Direct.Received > 0 {
			continue
		}
		found := Finding{
			Evidence: fmt.Sprintf("%s (%s) answers neither through the overlay nor on the underlay", n.Name, n.Public),
			Cause: "the machine is off, the network between is cut or drops ICMP, or its published address is " +
				"wrong (--public-ip, --iface there)",
			Remedy: fmt.Sprintf("ip route get %s; ping %s; weft status on that node", n.Public, n.Public),
		}
		switch e := f.nextHop(n); {
		case e.Permanent:
			found.Evidence += fmt.Sprintf("; %s has a permanent neighbour entry on %s, with the address %s", e.IP,
				e.Dev, e.MAC)
			found.Cause = "the permanent neighbour entry is wrong; or " + found.Cause
			found.Remedy = fmt.Sprintf("ip neigh del %s dev %s; ", e.IP, e.Dev) + found.Remedy
		case e.Failed || e.IP.IsValid() && e.MAC == ctrl.MAC{}:
			found.Evidence += fmt.Sprintf("; nothing on %s answers for the address %s (ARP, neighbour discovery)",
				e.Dev, e.IP)
		}
		out = append(out, found)
	}
	return out
}

// nextHop returns the neighbour entry of the next hop to a node on the underlay, a zero value if
// there is none.
func (f *Facts) nextHop(n Node) ctrl.NeighbourState {
	hop := n.Underlay.Via
	if !hop.IsValid() {
		hop = n.Public
	}
	i := slices.IndexFunc(f.Neighbours, func(e ctrl.NeighbourState) bool {
		return e.IP == hop && e.Dev == n.Underlay.Dev
	})
	if i < 0 {
		return ctrl.NeighbourState{}
	}
	return f.Neighbours[i]
}

func findNotReady(f *Facts) []Finding {
	var reasons []string
	for _, c := range f.Daemon.Conditions {
		if !c.OK && !slices.Contains(reasons, c.Reason) {
			reasons = append(reasons, c.Name+": "+c.Reason)
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: "the daemon is not ready: " + strings.Join(reasons, "; "),
		Cause:    "see the reasons",
		Remedy:   "weft status; the daemon's log",
	}}
}
