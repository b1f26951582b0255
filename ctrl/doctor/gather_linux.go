package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/ctrl"
	"weft/ctrl/netfilter"
)

// Options select the facts.
type Options struct {
	SubnetFile string // DefaultSubnetFile if empty
	CNIDir     string // the directory of container runtimes if empty
	// Status returns the daemon's status as JSON; nil if there is no daemon to ask.
	Status func(context.Context) ([]byte, error)
	// Probe sends packets to other nodes and to the store: a few echoes, a TCP connection and a
	// datagram per node.
	Probe bool
	// Priority is the socket priority of echoes that the fast path of the udp backend leaves to the
	// packet engine: what carries few packets by another way must not hide that way's faults.
	Priority int
	// Watch looks for the packets of a trace; nil if there is no daemon to ask.
	Watch WatchFunc
}

// maxProbed is the number of nodes that are probed and whose packets are traced. A fault of this
// node concerns the first few as well as all.
const maxProbed = 16

// gathering collects the facts.
type gathering struct {
	*Facts
	options Options
	kernel  *ctrl.Kernel
	tc      []ctrl.TrafficFilter // at the start
}

// Gather collects the facts about this host, in the network namespace of the process. It always
// succeeds: facts that could not be observed are missing, with the reason.
func Gather(ctx context.Context, o Options) *Facts {
	g := gather(ctx, o)
	if g.kernel != nil {
		defer g.kernel.Close()
	}
	both := g.Env.Subnet.IsValid() && g.Env.Subnet6.IsValid()
	g.V6 = g.Env.Subnet6.IsValid() && !both
	var second gathering
	if both {
		second = g.forFamily(true)
		g.Second = second.Facts
	}
	g.observeNodes(ctx)
	g.probe(ctx)
	if both {
		second.observeNodes(ctx)
		second.probe(ctx)
	}
	g.countRepairs(ctx)
	g.readTC()
	if both {
		second.TC = g.TC
	}
	return g.Facts
}

// gather collects the facts that are the same for both families, and leaves the connection to the
// kernel open, if there is one.
func gather(ctx context.Context, o Options) gathering {
	if o.SubnetFile == "" {
		o.SubnetFile = DefaultSubnetFile
	}
	if o.CNIDir == "" {
		o.CNIDir = DefaultCNIDir
	}
	g := gathering{Facts: &Facts{Now: time.Now(), Missing: map[source]error{}, CNIDir: o.CNIDir}, options: o}
	g.readDaemon(ctx)
	kernel, err := ctrl.OpenKernel(nil)
	if err == nil {
		g.kernel = kernel
		err = g.readKernel()
	}
	if err == nil {
		g.tc, err = g.trafficFilters()
	}
	g.miss(fromKernel, err)
	g.readFiles()
	g.readEnv()
	g.readStore(ctx)
	return g
}

// forFamily returns a copy of the facts, to which those about a family can be added.
func (g gathering) forFamily(v6 bool) gathering {
	f := *g.Facts
	f.V6, f.Missing = v6, maps.Clone(g.Missing)
	g.Facts = &f
	return g
}

// observeNodes collects the facts of one family except for the probes.
func (g gathering) observeNodes(ctx context.Context) {
	if g.Missing[fromKernel] == nil {
		g.findNodes()
	}
	g.miss(fromFilter, g.readFilter())
	if err := errors.Join(g.Missing[fromSubnet], g.Missing[fromKernel]); err != nil {
		g.miss(fromPods, err)
		return
	}
	g.miss(fromPods, g.readPods(ctx))
}

// readTC reads the filters of traffic control again, and compares them.
func (g gathering) readTC() {
	if g.Missing[fromKernel] != nil {
		return
	}
	after, err := g.trafficFilters()
	g.miss(fromKernel, err)
	g.TC = countTC(g.tc, after)
}

// trafficFilters lists the filters of all devices.
func (g gathering) trafficFilters() ([]ctrl.TrafficFilter, error) {
	var devices []string
	for _, l := range g.Kernel.Links {
		devices = append(devices, l.Name)
	}
	return g.kernel.TrafficFilters(devices)
}

// countRepairs compares the daemon's counters with those at the start.
func (g gathering) countRepairs(ctx context.Context) {
	g.Took = time.Since(g.Now)
	if g.Missing[fromDaemon] != nil {
		return
	}
	if d, err := g.status(ctx); err == nil {
		before := g.Daemon.Kernel.Repairs + g.Daemon.Rules.Repairs
		g.Repairs = d.Kernel.Repairs + d.Rules.Repairs - min(before, d.Kernel.Repairs+d.Rules.Repairs)
	}
}

func (g gathering) miss(s source, err error) {
	if err != nil {
		g.Missing[s] = err
	}
}

func (g gathering) readDaemon(ctx context.Context) {
	d, err := g.status(ctx)
	if err != nil {
		g.miss(fromDaemon, err)
		g.miss(fromTraffic, err)
		return
	}
	if g.Daemon = d; d.Traffic == nil {
		g.miss(fromTraffic, fmt.Errorf("the kernel carries the packets of backend %q", d.Backend))
	}
}

func (g gathering) status(ctx context.Context) (Daemon, error) {
	if g.options.Status == nil {
		return Daemon{}, errors.New("not asked")
	}
	text, err := g.options.Status(ctx)
	if err != nil {
		return Daemon{}, err
	}
	return ParseStatus(text)
}

func (g gathering) readKernel() (err error) {
	if g.Kernel, err = g.kernel.Read(ctrl.OverlayName); err != nil {
		return err
	}
	if g.PolicyRules, err = g.kernel.PolicyRules(); err != nil {
		return err
	}
	if g.Neighbours, err = g.kernel.NeighbourStates(); err != nil {
		return err
	}
	if g.IPsec, err = g.kernel.ForeignPolicies(); err != nil {
		return err
	}
	g.Netem, err = g.kernel.NetemDevices()
	return err
}

// findNodes lists the other nodes and their routes.
func (g gathering) findNodes() {
	for _, d := range g.Daemon.Nodes {
		n := Node{Name: d.Name, Subnet: d.Subnet, Public: d.Public, Path: d.Path}
		if g.V6 {
			n.Subnet, n.Path = d.Subnet6, d.Path6
			if d.Public6.IsValid() && g.outerPerFamily() {
				n.Public = d.Public6
			}
		}
		if n.Subnet.IsValid() {
			// With ipsec and in a cloud, a node needs neither a route nor an address inside the
			// overlay.
			n.Unplanned = g.Daemon.Backend == "ipsec" || g.Daemon.Cloud != nil ||
				hasReason(d.Unreachable, mismatchReasons+"|"+duplicateReasons+"|"+routerReasons)
			g.Nodes = append(g.Nodes, n)
		}
	}
	if g.Missing[fromDaemon] != nil {
		g.nodesOfRoutes()
	}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		n.Probes.Received = -1
		if n.Name == "" {
			n.Name = n.Subnet.String()
		}
		n.Target = n.Subnet.Masked().Addr()
		if g.backend() == "host-gw" {
			n.Target = n.Target.Next()
		}
		if i < maxProbed {
			g.lookUp(n)
		}
	}
}

// nodesOfRoutes takes the nodes from the routes and the neighbours of the overlay.
func (g gathering) nodesOfRoutes() {
	for _, r := range g.Kernel.Routes {
		inside := ctrl.Contains([]netip.Prefix{g.network()}, r.Dst) && r.Dst != g.network()
		if r.Kind != ctrl.Forward || !r.Via.IsValid() || !inside {
			continue
		}
		n := Node{Subnet: r.Dst}
		if !g.network().Contains(r.Via) {
			n.Public = r.Via
		}
		for _, e := range g.Kernel.Neighbours {
			if e.IP == r.Via && e.Dev == r.Dev {
				n.Public = g.endpoint(e)
			}
		}
		g.Nodes = append(g.Nodes, n)
	}
	for _, e := range g.Kernel.Neighbours {
		known := slices.ContainsFunc(g.Nodes, func(n Node) bool { return n.Subnet.Contains(e.IP) })
		if g.network().Contains(e.IP) && !known {
			subnet := netip.PrefixFrom(e.IP, g.subnet().Bits()).Masked()
			g.Nodes = append(g.Nodes, Node{Subnet: subnet, Public: g.endpoint(e)})
		}
	}
}

// endpoint returns the address of the node that a neighbour entry leads to, by the forwarding
// entries.
func (g gathering) endpoint(n ctrl.Neighbour) netip.Addr {
	for _, e := range g.Kernel.FDB {
		if e.MAC == n.MAC && e.Dev == n.Dev {
			return e.Dst
		}
	}
	return netip.Addr{}
}

func (g gathering) lookUp(n *Node) {
	get := func(l ctrl.Lookup) Lookup {
		r, err := g.kernel.Lookup(l)
		return Lookup{r, err}
	}
	n.Route = get(ctrl.Lookup{Dst: n.Target})
	if n.Public.IsValid() {
		n.Underlay = get(ctrl.Lookup{Dst: n.Public})
	}
	bridges := g.bridges()
	if len(bridges) > 0 && g.forwards(bridges[0]) {
		// A pod's address: the bridge's own one would not be accepted as the source of a
		// forwarded packet.
		pod := g.subnet().Masked().Addr().Next().Next()
		forward := get(ctrl.Lookup{Dst: n.Target, Src: pod, In: bridges[0]})
		if !errors.Is(forward.Err, unix.EXDEV) && !errors.Is(forward.Err, unix.EINVAL) {
			n.Forward = forward
		}
	}
}

// forwards reports whether the kernel forwards packets that arrive by a device. Otherwise it has no
// routes for them.
func (g gathering) forwards(dev string) bool {
	all, _ := g.sysctl(g.forwardSysctl())
	own, _ := g.sysctl(sysctlName("net.ipv4.conf.%s.forwarding", dev))
	return all != "0" && (g.V6 || own != "0")
}

// readFilter reads the packet filters and traces the tunnel packets of each node.
func (g gathering) readFilter() error {
	if err := errors.Join(g.Missing[fromSubnet], g.Missing[fromKernel]); err != nil {
		return err
	}
	net := netfilter.Net{Network: g.network(), Subnet: g.subnet()}
	var err error
	if g.Filter, err = netfilter.Inspect(net); err != nil {
		return err
	}
	if g.Missing[fromEnv] == nil {
		g.RuleChanges, g.RulesFound, err = netfilter.Differences(netfilter.Desired{
			Nets:       []netfilter.Net{net},
			Masquerade: g.Env.IPMasq,
			Forward:    g.flag("iptables-forward-rules") != "false",
			KeepSource: g.guarded(), // without it, masquerade-foreign judges
		})
	}
	if err != nil {
		return err
	}
	for i := range g.Nodes[:min(len(g.Nodes), maxProbed)] {
		n := &g.Nodes[i]
		if err := errors.Join(g.traceTunnel(n), g.tracePods(n)); err != nil {
			return err
		}
	}
	if g.BelowIP, err = netfilter.TablesBelowIP(); err != nil {
		return err
	}
	return g.traceDocker()
}

// traceTunnel traces the tunnel packets from and to a node.
func (g gathering) traceTunnel(n *Node) error {
	port, self := g.tunnelPort(), n.Underlay.Src
	if port == 0 || !n.Public.IsValid() || !self.IsValid() {
		return nil
	}
	in := netfilter.Packet{Src: n.Public, Dst: self, Protocol: unix.IPPROTO_UDP, Port: port,
		In: n.Underlay.Dev}
	for _, hook := range []netfilter.Hook{netfilter.HookPrerouting, netfilter.HookInput} {
		verdicts, err := netfilter.Trace(hook, in)
		if err != nil {
			return err
		}
		n.In = append(n.In, verdicts...)
	}
	var err error
	n.Out, err = netfilter.Trace(netfilter.HookOutput, netfilter.Packet{Src: self, Dst: n.Public,
		Protocol: unix.IPPROTO_UDP, Port: port, Out: n.Underlay.Dev})
	return err
}

// tracePods traces packets between a pod of this node and one of another where they arrive.
func (g gathering) tracePods(n *Node) error {
	bridges := g.bridges()
	if len(bridges) == 0 || n.Route.Err != nil {
		return nil
	}
	pod, far := g.subnet().Masked().Addr().Next().Next(), n.Subnet.Masked().Addr().Next().Next()
	for _, p := range []netfilter.Packet{
		{Src: pod, Dst: far, In: bridges[0]}, {Src: far, Dst: pod, In: n.Route.Dev},
	} {
		verdicts, err := netfilter.Trace(netfilter.HookPrerouting, p)
		if err != nil {
			return err
		}
		n.Pods = append(n.Pods, verdicts...)
	}
	return g.traceTracking(n)
}

// outside is an address outside every pod network (RFC 5737, RFC 3849).
func (g gathering) outside() netip.Addr {
	if g.V6 {
		return netip.MustParseAddr("2001:db8::1")
	}
	return netip.MustParseAddr("198.51.100.1")
}

// traceTracking traces the connection tracking of packets between a pod of this node and one of
// another, by both protocols that Services have.
func (g gathering) traceTracking(n *Node) error {
	bridge := g.bridges()[0]
	pod, far := g.subnet().Masked().Addr().Next().Next(), n.Subnet.Masked().Addr().Next().Next()
	trace := func(into *netfilter.Tracking, p netfilter.Packet) error {
		found, err := netfilter.TraceTracking(p)
		if *into == (netfilter.Tracking{}) {
			*into = found
		}
		return err
	}
	var err error
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		err = errors.Join(err,
			trace(&n.Sent, netfilter.Packet{Src: pod, Dst: far, Protocol: protocol, In: bridge}),
			trace(&n.Returned, netfilter.Packet{Src: far, Dst: pod, Protocol: protocol, In: n.Route.Dev}),
			trace(&g.Outbound, netfilter.Packet{Src: pod, Dst: g.outside(), Protocol: protocol, In: bridge}))
	}
	return err
}

// traceDocker traces packets of other nodes to docker0.
func (g gathering) traceDocker() (err error) {
	const bridge = "docker0"
	if !slices.Contains(g.bridges(), bridge) || len(g.devices()) == 0 {
		return nil
	}
	subnet := g.subnet().Masked().Addr()
	p := netfilter.Packet{Src: g.network().Addr().Next(), Dst: subnet.Next().Next(),
		Protocol: unix.IPPROTO_TCP, Port: 80, In: g.devices()[0], Out: bridge}
	for _, hook := range []netfilter.Hook{netfilter.HookPrerouting, netfilter.HookForward} {
		q := p
		if hook == netfilter.HookPrerouting {
			q.Out = ""
		}
		verdicts, traceErr := netfilter.Trace(hook, q)
		g.Docker, err = append(g.Docker, verdicts...), errors.Join(err, traceErr)
	}
	g.Docker = slices.DeleteFunc(g.Docker, func(v netfilter.Verdict) bool {
		return strings.Contains(v.Rule, "policy") // forward-drop
	})
	return err
}
