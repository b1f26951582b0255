package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weft/ctrl"
	"weft/ctrl/netfilter"
)

// TraceFlow follows a packet through this node: from a pod or this host to any address, or from
// another node to a pod here. send sends packets of the flow from this host, with its own source
// address, and reports where they end.
func TraceFlow(ctx context.Context, flow Flow, o Options, send bool) (Trace, error) {
	o.Probe = false
	g := gather(ctx, o)
	if g.kernel != nil {
		defer g.kernel.Close()
	}
	if err := errors.Join(g.Missing[fromSubnet], g.Missing[fromKernel]); err != nil {
		return Trace{}, err
	}
	if g.V6 = flow.Src.Is6(); !g.subnet().IsValid() {
		return Trace{}, fmt.Errorf("this node has no pod subnet of the family of %s", flow.Src)
	}
	g.observeNodes(ctx)
	w := &way{Facts: g.Facts, flow: flow}
	g.observe(w)
	if send {
		w.sent = g.send(ctx, w)
	}
	return w.trace(), nil
}

// observe asks the kernel for the routes and the verdicts.
func (g gathering) observe(w *way) {
	get := func(l ctrl.Lookup) Lookup {
		r, err := g.kernel.Lookup(l)
		return Lookup{r, err}
	}
	w.source = get(ctrl.Lookup{Dst: w.flow.Src})
	if !w.source.Local {
		w.in = w.source.Dev
	}
	w.route = get(ctrl.Lookup{Dst: w.flow.Dst, Src: w.flow.Src, In: w.in})
	w.rejected = w.route.Err != nil && get(ctrl.Lookup{Dst: w.flow.Dst}).Err != nil
	if w.node = w.nodeOf(w.flow.Dst); w.node != nil {
		if w.node.Underlay == (Lookup{}) && w.node.Public.IsValid() {
			g.lookUp(w.node)
		}
		if w.node.Out == nil {
			w.filters = g.traceTunnel(w.node)
		}
	}
	if w.filters == nil && w.route.Err == nil {
		w.verdicts, w.filters = traceHooks(w)
		if w.filters == nil {
			w.below, w.filters = netfilter.TablesBelowIP()
		}
	}
}

// traceHooks returns the verdicts of the chains on the packet's way.
func traceHooks(w *way) (all []netfilter.Verdict, err error) {
	p := netfilter.Packet{Src: w.flow.Src, Dst: w.flow.Dst, Protocol: w.flow.Protocol, Port: w.flow.Port}
	at := func(hook netfilter.Hook, in, out string) {
		p.In, p.Out = in, out
		verdicts, traceErr := netfilter.Trace(hook, p)
		all, err = append(all, verdicts...), errors.Join(err, traceErr)
	}
	if w.fromHost() {
		at(netfilter.HookOutput, "", w.route.Dev)
		return all, err
	}
	at(netfilter.HookPrerouting, w.in, "")
	if w.route.Local {
		at(netfilter.HookInput, w.in, "")
	} else {
		at(netfilter.HookForward, w.in, w.route.Dev)
	}
	return all, err
}

// traceProbes is the number of packets that --send sends.
const traceProbes = 5

// send sends packets of the flow from this host and compares the counters.
func (g gathering) send(ctx context.Context, w *way) *sent {
	before := g.counters(ctx)
	s := &sent{}
	if w.in != "" && w.subnet().Masked().Contains(w.flow.Src) {
		e := echo(ctx, echoRequest{dst: w.flow.Src, size: echoSize, tries: probeTries, wait: probeWait})
		s.source = &e
	}
	if w.node != nil {
		s.target = echo(ctx, echoRequest{src: g.source(), dst: w.node.Target, size: echoSize,
			tries: probeTries, wait: probeWait, priority: g.options.Priority})
	}
	probe := newTraceProbe(w.flow, g.source())
	done := func() []Watched { return nil }
	if g.options.Watch != nil && !w.local() {
		done = g.options.Watch(ctx, probe.marked(w.node))
	}
	switch w.flow.Protocol {
	case protocolTCP:
		s.sendTCP(ctx, w.flow, probe)
	case protocolUDP:
		s.sendUDP(ctx, w.flow, probe)
	default:
		e := echo(ctx, echoRequest{src: g.source(), dst: w.flow.Dst, size: probe.size, tries: traceProbes,
			wait: probeWait, mark: probe.mark})
		s.failed = e.Err
		if e.Received > 0 {
			s.answer = fmt.Sprintf("%s answers echoes, RTT %v", w.flow.Dst, e.RTT.Round(time.Microsecond))
		}
	}
	s.watched = done()
	after := g.counters(ctx)
	for _, c := range after {
		for _, b := range before {
			if c.name == b.name && c.value > b.value {
				s.counted = append(s.counted, fmt.Sprintf("%s +%d", c.name, c.value-b.value))
			}
		}
	}
	return s
}

func (s *sent) sendTCP(ctx context.Context, flow Flow, probe traceProbe) {
	d := net.Dialer{Timeout: tcpWait}
	if probe.from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(probe.from)
	}
	begin := time.Now()
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(flow.Dst, max(flow.Port, probePort)).String())
	took := time.Since(begin).Round(time.Microsecond)
	var timeout net.Error
	switch {
	case err == nil:
		c.Close()
		s.answer = fmt.Sprintf("%s accepts the connection after %v", flow.Dst, took)
	case errors.Is(err, unix.ECONNREFUSED) && flow.Port == 0:
		s.answer = fmt.Sprintf("%s refuses a connection to port %d after %v, so packets arrive", flow.Dst, probePort, took)
	case errors.As(err, &timeout) && timeout.Timeout(): // no answer
	default:
		s.failed = err
	}
}

func (s *sent) sendUDP(ctx context.Context, flow Flow, probe traceProbe) {
	err := pokePort(ctx, netip.AddrPortFrom(flow.Dst, max(flow.Port, probePort)), probe.payload(), probeWait)
	if errors.Is(err, unix.ECONNREFUSED) && flow.Port == 0 {
		s.answer = fmt.Sprintf("%s refuses port %d, so packets arrive", flow.Dst, probePort)
		return
	}
	s.failed = err
}

// counter is a number of packets.
type counter struct {
	name  string
	value uint64
}

// counters returns the daemon's counters of packets by node and by reason of a drop.
func (g gathering) counters(ctx context.Context) []counter {
	d, err := g.status(ctx)
	if err != nil || d.Traffic == nil {
		return nil
	}
	var all []counter
	for _, n := range d.Traffic.Nodes {
		all = append(all, counter{"sent to " + n.Node, n.Out.Packets},
			counter{"received from " + n.Node, n.In.Packets})
	}
	for _, drop := range d.Traffic.Drops {
		all = append(all, counter{"dropped as " + drop.Reason, drop.Packets})
	}
	return all
}
