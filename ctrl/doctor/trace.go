package doctor

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/ctrl"
	"weft/ctrl/netfilter"
)

// Flow describes the packet of a trace.
type Flow struct {
	Src, Dst netip.Addr
	Protocol uint8  // of IP; 0: any
	Port     uint16 // destination port; 0: any
}

// Protocol numbers of IP (RFC 790).
const (
	protocolICMP = 1
	protocolTCP  = 6
	protocolUDP  = 17
)

// ParseFlow parses two addresses and a protocol: "icmp", "tcp/80", "udp/53", or an empty string for
// any.
func ParseFlow(src, dst, protocol string) (Flow, error) {
	var f Flow
	var err error
	if f.Src, err = netip.ParseAddr(src); err != nil {
		return Flow{}, fmt.Errorf("source %q is not an IP address", src)
	}
	if f.Dst, err = netip.ParseAddr(dst); err != nil {
		return Flow{}, fmt.Errorf("destination %q is not an IP address", dst)
	}
	if f.Src.Is4() != f.Dst.Is4() {
		return Flow{}, fmt.Errorf("%v and %v are not of one family", f.Src, f.Dst)
	}
	name, port, hasPort := strings.Cut(protocol, "/")
	numbers := map[string]uint8{"": 0, "icmp": protocolICMP, "tcp": protocolTCP, "udp": protocolUDP}
	number, known := numbers[name]
	n, portErr := strconv.ParseUint(port, 10, 16)
	switch {
	case !known, hasPort && number != protocolTCP && number != protocolUDP, hasPort && portErr != nil:
		return Flow{}, fmt.Errorf("protocol %q, want icmp, tcp, udp, tcp/PORT or udp/PORT", protocol)
	}
	f.Protocol, f.Port = number, uint16(n)
	if f.Src.Is6() && number == protocolICMP {
		const icmp6 = 58
		f.Protocol = icmp6
	}
	return f, nil
}

// Outcome is the result of a step of a trace.
type Outcome string

// The outcomes of a step.
const (
	Passes  Outcome = "passes"
	Fails   Outcome = "fails"
	Unknown Outcome = "unknown"
)

// Step is one stage on the way of a packet.
type Step struct {
	Name     string  `json:"name"`
	Outcome  Outcome `json:"outcome"`
	Evidence string  `json:"evidence"`
	Remedy   string  `json:"remedy,omitempty"`
}

// Trace is the way of a packet, as far as this node knows it.
type Trace struct {
	Steps []Step `json:"steps"`
	// Arrives is Fails if a step does, else Unknown if one is, else Passes.
	Arrives Outcome `json:"arrives"`
}

// Text writes the trace for a human, in lines of at most width characters.
func (t Trace) Text(w io.Writer, width int) error {
	b := wrapper{width: width}
	marks := map[Outcome]string{Passes: "✓", Fails: "✗", Unknown: "?"}
	for _, s := range t.Steps {
		b.line(fmt.Sprintf("%s %-14s ", marks[s.Outcome], s.Name), s.Evidence)
		if s.Remedy != "" {
			b.line(fmt.Sprintf("  %-14s ", ""), s.Remedy)
		}
	}
	last := map[Outcome]string{
		Passes:  "✓ nothing on this node keeps the packet from arriving",
		Fails:   "✗ the packet does not arrive",
		Unknown: "? nothing certain keeps the packet from arriving; the steps with ? could not be judged",
	}[t.Arrives]
	b.line("", last)
	_, err := io.WriteString(w, b.String())
	return err
}

// way holds the observations of a trace.
type way struct {
	*Facts
	flow Flow

	in       string // device by which the packet comes; empty from this host
	source   Lookup // route back to the source
	route    Lookup // of the packet
	rejected bool   // even from this host, so that the packet's source is not the reason
	node     *Node  // that has the destination; nil if none
	verdicts []netfilter.Verdict
	filters  error    // why there are no verdicts
	below    []string // tables of packet filters that are not examined
	sent     *sent    // nil unless packets were sent
}

// sent holds the results of packets that were sent.
type sent struct {
	target Echo   // to the node's address in the overlay
	source *Echo  // to the pod that is the source; nil if that is not on this node
	answer string // of the destination; empty without one
	failed error  // reason that the destination's side gave
	// counted describes the counters that changed meanwhile.
	counted []string
	// watched is what the nodes saw of the packets, this node first; empty if none looked.
	watched []Watched
}

// trace judges the observations in the order of the packet's way. Steps after one that fails are
// judged, too: they may hold a second fault.
func (w *way) trace() Trace {
	t := Trace{Arrives: Passes}
	for _, step := range []func() []Step{
		w.sourceStep, w.forwardStep, w.rpFilterStep, w.routeStep, w.filterStep, w.leaseStep, w.deviceStep,
		w.entryStep, w.underlayStep, w.tunnelFilterStep, w.mtuStep, w.farStep, w.sendStep,
	} {
		t.Steps = append(t.Steps, step()...)
	}
	for _, s := range t.Steps {
		if s.Outcome == Fails || s.Outcome == Unknown && t.Arrives == Passes {
			t.Arrives = s.Outcome
		}
	}
	return t
}

func one(name string, o Outcome, format string, args ...any) []Step {
	return []Step{{Name: name, Outcome: o, Evidence: fmt.Sprintf(format, args...)}}
}

func failed(name, remedy, format string, args ...any) []Step {
	return []Step{{Name: name, Outcome: Fails, Evidence: fmt.Sprintf(format, args...), Remedy: remedy}}
}

// fromHost reports whether this host sends the packet itself.
func (w *way) fromHost() bool { return w.in == "" }

// local reports whether the destination is on this node, a pod or the host.
func (w *way) local() bool {
	return w.route.Local || w.subnet().Masked().Contains(w.flow.Dst)
}

func (w *way) sourceStep() []Step {
	switch {
	case w.source.Err != nil:
		return failed("source", "", "no route back to %s: %v", w.flow.Src, w.source.Err)
	case w.fromHost():
		return one("source", Passes, "%s is an address of this host", w.flow.Src)
	case slices.Contains(w.devices(), w.in) || w.nodeOf(w.flow.Src) != nil:
		return one("source", Passes, "%s is on another node, so its packets arrive by %s; this is the second "+
			"half of the way", w.flow.Src, w.in)
	case !w.subnet().Masked().Contains(w.flow.Src):
		return one("source", Unknown, "%s is neither in this node's subnet %s nor another node's; its "+
			"packets would come by %s", w.flow.Src, w.subnet().Masked(), w.in)
	}
	p, visible := w.pod(w.flow.Src)
	if !visible {
		return w.neighbour("source", w.flow.Src, w.in, "a pod of this node on %s (its own routes and filters are not examined)")
	}
	steps := w.neighbour("source", w.flow.Src, w.in, "a pod of this node on %s")
	if problem := w.wrongRoute(p); problem != "" {
		return append(steps, failed("pod", "weft doctor", "%s %s", p, problem)...)
	}
	return append(steps, one("pod", Passes, "%s: route to other nodes by %s dev %s, MTU %d (its own filters are "+
		"not examined)", p, p.Route.Via, p.Dev, p.MTU)...)
}

// neighbour judges the neighbour entry of an address on a link.
func (w *way) neighbour(name string, a netip.Addr, dev, description string) []Step {
	description = fmt.Sprintf("%s is "+description, a, dev)
	for _, n := range w.Neighbours {
		if n.IP != a || n.Dev != dev {
			continue
		}
		if n.Failed || n.MAC == (ctrl.MAC{}) {
			return failed(name, "is it running? ip neigh show "+a.String(),
				"%s, but nothing answers for the address (neighbour entry failed)", description)
		}
		if n.Permanent {
			return one(name, Unknown, "%s, at %s by a permanent entry, which the kernel does not verify: "+
				"ip neigh show %s", description, n.MAC, a)
		}
		return one(name, Passes, "%s, at %s", description, n.MAC)
	}
	return one(name, Passes, "%s; no neighbour entry yet", description)
}

func (w *way) nodeOf(a netip.Addr) *Node {
	i := slices.IndexFunc(w.Nodes, func(n Node) bool { return n.Subnet.Contains(a) })
	if i < 0 {
		return nil
	}
	return &w.Nodes[i]
}

func (w *way) forwardStep() []Step {
	if w.fromHost() || w.route.Local {
		return nil
	}
	names := []string{w.forwardSysctl()}
	if w.flow.Src.Is4() {
		names = append(names, sysctlName("net.ipv4.conf.%s.forwarding", w.in))
	}
	for _, name := range names {
		if value, ok := w.sysctl(name); ok && value == "0" {
			return failed("forwarding", "sysctl -w "+name+"=1", "%s is 0", name)
		}
	}
	return one("forwarding", Passes, "%s are not 0", listed(names))
}

func (w *way) rpFilterStep() []Step {
	if w.fromHost() || !w.flow.Src.Is4() {
		return nil
	}
	if w.rejected {
		return nil // by the route, whatever the source
	}
	if errors.Is(w.route.Err, syscall.EXDEV) || errors.Is(w.route.Err, syscall.EINVAL) {
		return failed("source check", "ip route get "+w.flow.Src.String(),
			"the kernel rejects packets from %s that arrive by %s: %v (rp_filter, or an address of this host)",
			w.flow.Src, w.in, w.route.Err)
	}
	all, _ := w.number("net.ipv4.conf.all.rp_filter")
	own, _ := w.number(sysctlName("net.ipv4.conf.%s.rp_filter", w.in))
	return one("source check", Passes, "rp_filter of %s is %d, and the route back to %s uses %s", w.in,
		max(all, own), w.flow.Src, w.source.Dev)
}

func (w *way) routeStep() []Step {
	r := w.route
	if r.Err != nil {
		return failed("route", "ip route get "+w.flow.Dst.String()+"; ip rule", "%v", r.Err)
	}
	text := fmt.Sprintf("%s dev %s", r.Match, r.Dev)
	if r.Via.IsValid() {
		text = fmt.Sprintf("%s via %s dev %s", r.Match, r.Via, r.Dev)
	}
	text += fmt.Sprintf(" table %d proto %d", r.Table, r.Protocol)
	if len(w.PolicyRules) > 0 {
		text += "; policy rules: " + strings.Join(w.PolicyRules, "; ")
	}
	if w.node != nil && !w.rightRoute(*w.node, r) {
		return failed("route", "remove that route or rule; ip route get "+w.flow.Dst.String(),
			"%s does not lead into the overlay, although %s has the destination", text, w.node.Name)
	}
	return one("route", Passes, "%s", text)
}

func (w *way) filterStep() []Step {
	switch {
	case w.filters != nil:
		return one("packet filter", Unknown, "not read: %v", w.filters)
	case w.route.Err != nil:
		return nil // no chains without a route
	}
	var steps []Step
	passed := 0
	for _, v := range w.verdicts {
		switch {
		case v.Dropped && v.Certain:
			steps = append(steps, failed("packet filter", v.Remedy, "%s", v)...)
		case v.Dropped:
			steps = append(steps, one("packet filter", Unknown, "%s", v)...)
		case v.Accepted:
			steps = append(steps, one("packet filter", Passes, "%s", v)...)
		default:
			passed++
		}
	}
	if len(w.below) > 0 {
		steps = append(steps, one("packet filter", Unknown, "not examined: nft list table %s",
			strings.Join(w.below, ", "))...)
	}
	return append(steps, one("packet filter", Passes, "%d other chains let it pass", passed)...)
}

func (w *way) leaseStep() []Step {
	d := w.flow.Dst
	switch {
	case w.route.Local:
		return one("destination", Passes, "%s is this host", d)
	case w.subnet().Masked().Contains(d):
		return w.neighbour("destination", d, w.route.Dev, "in this node's subnet, on %s")
	case w.node != nil && w.node.Unplanned:
		return failed("lease", "weft status", "%s has %s, but this node has no path to it", w.node.Name,
			w.node.Subnet)
	case w.node != nil:
		return one("lease", Passes, "%s has %s, its address is %s", w.node.Name, w.node.Subnet, w.node.Public)
	case w.network().Contains(d) && w.Missing[fromDaemon] != nil:
		return one("lease", Unknown, "no route tells which node has %s, and the daemon was not asked: %v", d,
			w.Missing[fromDaemon])
	case w.network().Contains(d):
		return failed("lease", "kubectl get pods -o wide; weft status", "no node has a subnet with %s", d)
	}
	return one("destination", Passes, "%s is outside the pod network %s: it leaves by %s", d, w.network(),
		w.route.Dev)
}

func (w *way) deviceStep() []Step {
	if w.route.Err != nil || w.route.Local {
		return nil
	}
	l, ok := w.link(w.route.Dev)
	switch {
	case !ok:
		return failed("device", "", "%s does not exist", w.route.Dev)
	case l.Kind == ctrl.KindTUN && errors.Is(w.Missing[fromDaemon], os.ErrDeadlineExceeded):
		return failed("device", "weft doctor", "nothing reads %s: %v", l.Name, w.Missing[fromDaemon])
	case !l.Up:
		return failed("device", "ip link set "+l.Name+" up", "%s is down", l.Name)
	}
	return one("device", Passes, "%s is up, MTU %d", l.Name, l.MTU)
}

// entryStep judges the permanent entries of a VXLAN device.
func (w *way) entryStep() []Step {
	l, _ := w.link(w.route.Dev)
	if w.node == nil || l.Kind != ctrl.KindVXLAN {
		return nil
	}
	for _, n := range w.Kernel.Neighbours {
		if n.Dev != l.Name || n.IP != w.route.Via {
			continue
		}
		for _, e := range w.Kernel.FDB {
			if e.Dev != l.Name || e.MAC != n.MAC {
				continue
			}
			if w.node.Public.IsValid() && e.Dst != w.node.Public {
				return failed("vxlan entries", "restart the daemon", "%s leads to %s, not to %s (%s)", e, e.Dst,
					w.node.Name, w.node.Public)
			}
			return one("vxlan entries", Passes, "%s; %s", n, e)
		}
		return failed("vxlan entries", "restart the daemon", "no forwarding entry for %s on %s", n.MAC, l.Name)
	}
	return failed("vxlan entries", "restart the daemon", "no neighbour entry for %s on %s", w.route.Via, l.Name)
}

func (w *way) underlayStep() []Step {
	if w.node == nil || w.local() || !w.node.Public.IsValid() {
		return nil
	}
	u := w.node.Underlay
	if u.Err != nil {
		return failed("underlay", "ip route get "+w.node.Public.String(), "no route to %s: %v", w.node.Public, u.Err)
	}
	hop := u.Via
	if !hop.IsValid() {
		hop = w.node.Public
	}
	if slices.Contains(w.devices(), u.Dev) {
		return failed("underlay", "choose another pod network", "the route to %s enters the overlay again (%s)",
			w.node.Public, u.Dev)
	}
	return w.neighbour("underlay", hop, u.Dev, "the next hop on %s")
}

func (w *way) tunnelFilterStep() []Step {
	if w.node == nil || w.local() {
		return nil
	}
	var steps []Step
	for _, v := range w.node.Out {
		switch {
		case v.Dropped && v.Certain:
			steps = append(steps, failed("tunnel filter", w.acceptPort(v), "%s: UDP port %d to %s", v,
				w.tunnelPort(), w.node.Public)...)
		case v.Dropped:
			steps = append(steps, one("tunnel filter", Unknown, "%s: UDP port %d to %s", v, w.tunnelPort(),
				w.node.Public)...)
		}
	}
	if len(steps) == 0 && len(w.node.Out) > 0 {
		return one("tunnel filter", Passes, "%d chains let UDP port %d to %s pass", len(w.node.Out),
			w.tunnelPort(), w.node.Public)
	}
	return steps
}

func (w *way) mtuStep() []Step {
	if w.route.Err != nil || w.route.Local {
		return nil
	}
	var parts []string
	smallest := 0
	add := func(name string, mtu int) {
		if mtu > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", name, mtu))
			if smallest == 0 || mtu < smallest {
				smallest = mtu
			}
		}
	}
	for _, dev := range []string{w.in, w.route.Dev} {
		if l, ok := w.link(dev); ok {
			add(dev, l.MTU)
		}
	}
	add("route", w.route.MTU)
	if w.node != nil && w.node.Path != nil {
		add("path", w.node.Path.MTU)
	}
	return one("MTU", Passes, "packets of up to %d bytes fit: %s", smallest, listed(parts))
}

// farStep reports the other node's own answer to the mesh probe, if packets are not sent now.
func (w *way) farStep() []Step {
	if w.node == nil || w.local() || w.sent != nil {
		return nil
	}
	p := w.node.Path
	switch {
	case p == nil || p.Sent == 0:
		return one("other node", Unknown, "%s was not asked: --send", w.node.Name)
	case p.Lost == p.Sent:
		return failed("other node", "weft doctor here and on "+w.node.Name,
			"%s answered none of the last %d echoes through the overlay", w.node.Name, p.Sent)
	}
	return one("other node", Passes, "%s answered %d of the last %d echoes through the overlay, RTT %.2f ms",
		w.node.Name, p.Sent-p.Lost, p.Sent, p.RTT*1000)
}

func (w *way) sendStep() []Step {
	if w.sent == nil {
		return nil
	}
	var steps []Step
	if e := w.sent.source; e != nil && e.Received == 0 {
		steps = append(steps, Step{Name: "source", Outcome: Unknown,
			Evidence: fmt.Sprintf("%s does not answer echoes of this host", w.flow.Src),
			Remedy:   "is its link in the bridge and up? bridge link; ip addr and ip route in the pod"})
	}
	if w.node != nil && !w.local() {
		e := w.sent.target
		if e.Received > 0 {
			steps = append(steps, one("other node", Passes, "%s answers echoes to %s through the overlay, RTT %v", w.node.Name,
				w.node.Target, e.RTT.Round(time.Microsecond))...)
		} else {
			how := ""
			if w.sent.answer != "" { // the fast path carried those of the flow
				how = " that the workers carry, as they do bulk flows"
			}
			steps = append(steps, failed("other node", "weft doctor here and on "+w.node.Name,
				"%s does not answer echoes to %s through the overlay%s", w.node.Name, w.node.Target, how)...)
		}
	}
	counted := ""
	if len(w.sent.counted) > 0 {
		counted = "; counted meanwhile: " + strings.Join(w.sent.counted, ", ")
	}
	switch {
	case w.sent.answer != "":
		steps = append(steps, one("probe", Passes, "%s%s", w.sent.answer, counted)...)
	case errors.Is(w.sent.failed, syscall.ECONNREFUSED):
		steps = append(steps, Step{Name: "probe", Outcome: Unknown,
			Evidence: fmt.Sprintf("port %d of %s refuses%s", w.flow.Port, w.flow.Dst, counted),
			Remedy:   "no program listens there, or a filter rejects the packet; trace without a port"})
	case w.sent.failed != nil:
		steps = append(steps, failed("probe", "", "%v%s", w.sent.failed, counted)...)
	case len(w.sent.watched) > 0:
		steps = append(steps, w.seenStep())
	default:
		s := Step{Name: "probe", Outcome: Unknown,
			Evidence: fmt.Sprintf("no answer from %s to packets of this host%s", w.flow.Dst, counted)}
		if w.node != nil {
			s.Remedy = fmt.Sprintf("weft doctor and weft trace %s %s on %s", w.flow.Src, w.flow.Dst, w.node.Name)
		}
		steps = append(steps, s)
	}
	return steps
}
