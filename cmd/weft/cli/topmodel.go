package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/cmd/control"
	"weft/metrics"
)

// topModel is the state of weft top. It is a value: each method returns the next state.
type topModel struct {
	width, height int
	last          control.Top
	seconds       float64 // between the last two samples
	previous      control.Top
	history       map[string][]float64 // bits per second of each node, the newest last
	order         topOrder
	filter        string
	filtering     bool // keys go to the filter
	paused        bool
}

// topOrder is the order of nodes and flows.
type topOrder int

const (
	byRate topOrder = iota
	byPackets
	byName
	byRTT
	numOrders
)

// String returns the order's name.
func (o topOrder) String() string { return [...]string{"rate", "packets", "name", "RTT"}[o] }

// historyLen is the number of samples in a sparkline.
const historyLen = 20

// totalName is the key of the node's total in topModel.history; no node has this name.
const totalName = ""

// add returns the state after a sample.
func (m topModel) add(t control.Top) topModel {
	if m.paused {
		return m
	}
	m.previous, m.last = m.last, t
	m.seconds = t.Time.Sub(m.previous.Time).Seconds()
	if m.previous.Time.IsZero() || m.seconds <= 0 {
		m.seconds = 0
		return m
	}
	history := map[string][]float64{
		totalName: m.extend(totalName, m.rate(t.Out, m.previous.Out).bits+m.rate(t.In, m.previous.In).bits),
	}
	for _, n := range m.nodes() {
		history[n.Name] = m.extend(n.Name, n.out.bits+n.in.bits)
	}
	m.history = history
	return m
}

// extend returns the history of a name with one more value. It does not change the old one, which
// belongs to an earlier state.
func (m topModel) extend(name string, v float64) []float64 {
	all := append(slices.Clone(m.history[name]), v)
	return all[max(0, len(all)-historyLen):]
}

// key returns the state after a key, and whether to quit. text is the text that the key types.
func (m topModel) key(key, text string) (next topModel, quit bool) {
	if key == "ctrl+c" {
		return m, true
	}
	if m.filtering {
		switch key {
		case "enter":
			m.filtering = false
		case "esc":
			m.filtering, m.filter = false, ""
		case "backspace":
			if r := []rune(m.filter); len(r) > 0 {
				m.filter = string(r[:len(r)-1])
			}
		default:
			m.filter += text
		}
		return m, false
	}
	switch key {
	case "q":
		return m, true
	case "p", "space":
		m.paused = !m.paused
	case "s":
		m.order = (m.order + 1) % numOrders
	case "/":
		m.filtering = true
	case "esc":
		m.filter = ""
	}
	return m, false
}

// rate is traffic per second.
type rate struct{ bits, packets float64 }

// rate returns the rate between two totals. A total that fell, since the daemon has started again,
// counts as 0.
func (m topModel) rate(now, before metrics.Volume) rate {
	if m.seconds == 0 || now.Bytes < before.Bytes || now.Packets < before.Packets {
		return rate{}
	}
	return rate{
		bits:    float64(now.Bytes-before.Bytes) * 8 / m.seconds,
		packets: float64(now.Packets-before.Packets) / m.seconds,
	}
}

// topNode is a node and its rates.
type topNode struct {
	control.TopNode
	out, in rate
	kernel  float64 // bits per second, of both directions, that the fast path carried
}

// nodes returns the nodes that pass the filter, in order.
func (m topModel) nodes() []topNode {
	before := map[string]control.TopNode{}
	for _, n := range m.previous.Nodes {
		before[n.Name] = n
	}
	var all []topNode
	for _, n := range m.last.Nodes {
		if strings.Contains(n.Name, m.filter) {
			b, known := before[n.Name]
			if !known {
				b = n
			}
			all = append(all, topNode{n, m.rate(n.Out, b.Out), m.rate(n.In, b.In),
				m.rate(n.FastPath.Out, b.FastPath.Out).bits + m.rate(n.FastPath.In, b.FastPath.In).bits})
		}
	}
	slices.SortStableFunc(all, func(a, b topNode) int {
		switch m.order {
		case byRate:
			return cmp.Compare(b.out.bits+b.in.bits, a.out.bits+a.in.bits)
		case byPackets:
			return cmp.Compare(b.out.packets+b.in.packets, a.out.packets+a.in.packets)
		case byRTT:
			return cmp.Compare(b.RTT, a.RTT)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// flows returns the flows that pass the filter, in order.
func (m topModel) flows() []control.TopFlow {
	var all []control.TopFlow
	for _, f := range m.last.Flows {
		if strings.Contains(flowName(f)+" "+f.Node+" "+f.Drop+" "+m.way(f), m.filter) {
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b control.TopFlow) int {
		switch m.order {
		case byPackets:
			return cmp.Compare(b.Packets, a.Packets)
		case byName:
			return strings.Compare(flowName(a), flowName(b))
		}
		return cmp.Compare(b.Bytes, a.Bytes)
	})
	return all
}

// way returns who carried a flow; empty if all flows have the same carrier.
func (m topModel) way(f control.TopFlow) string {
	if m.last.FastPath == nil {
		return ""
	}
	return flowWay(f)
}

func flowName(f control.TopFlow) string {
	return fmt.Sprintf("%s %s > %s", protoName(f.Proto), endName(f.Src), endName(f.Dst))
}

func endName(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

// protoName returns the name of an IP protocol, or its number.
func protoName(proto uint8) string {
	names := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
	if name, ok := names[proto]; ok {
		return name
	}
	return strconv.Itoa(int(proto))
}

const (
	nodeHeader = "NODE"
	flowHeader = "FLOW"
	dropMark   = "drop " // stands in lines about drops
)

// lines returns the screen without colours, at most m.height lines.
func (m topModel) lines() []string {
	lines := append([]string{m.title()}, m.ways()...)
	lines = append(lines, m.drops()...)
	const fixed = 2 // headers of the tables
	room := max(0, m.height-len(lines)-fixed-1)
	nodes, flows := m.nodes(), m.flows()
	// Half of the room for each, unless one does not need it.
	forNodes := min(len(nodes), max(room/2, room-len(flows)))
	forFlows := min(len(flows), room-forNodes)
	lines = append(lines, m.nodeTable(nodes[:forNodes])...)
	lines = append(lines, m.flowTable(flows[:forFlows])...)
	lines = append(lines, m.foot())
	for i := range lines {
		lines[i] = cut(lines[i], m.width)
	}
	return lines[:min(len(lines), max(m.height, 1))]
}

func (m topModel) title() string {
	t := &m.last
	out, in := m.rate(t.Out, m.previous.Out), m.rate(t.In, m.previous.In)
	title := fmt.Sprintf("weft top  %s  %s  out %sbit/s %spkt/s  in %sbit/s %spkt/s", t.Node, t.Backend,
		si(out.bits), si(out.packets), si(in.bits), si(in.packets))
	if t.Estimated {
		title += "  estimated"
	}
	if m.paused {
		title += "  PAUSED"
	}
	if t.FastPath == nil { // else it stands beside the workers
		title = m.withFrames(title, out, in)
	}
	return title + recent(m.history[totalName], m.width-len([]rune(title)))
}

// ways returns a line for the kernel and one for the workers if both may carry packets.
func (m topModel) ways() []string {
	if m.last.FastPath == nil {
		return nil
	}
	now, before := *m.last.FastPath, metrics.NodeFastPath{}
	if m.previous.FastPath != nil {
		before = *m.previous.FastPath
	}
	out := m.rate(less(m.last.Out, now.Out), less(m.previous.Out, before.Out))
	in := m.rate(less(m.last.In, now.In), less(m.previous.In, before.In))
	line := func(way string, out, in rate) string {
		return fmt.Sprintf("  %-7s  out %6sbit/s %6spkt/s  in %6sbit/s %6spkt/s", way,
			si(out.bits), si(out.packets), si(in.bits), si(in.packets))
	}
	return []string{line("kernel", m.rate(now.Out, before.Out), m.rate(now.In, before.In)),
		m.withFrames(line("workers", out, in), out, in)}
}

// withFrames adds the packets per frame to a line about the rates of the workers, as far as they
// are known and fit the screen.
func (m topModel) withFrames(line string, out, in rate) string {
	add := func(direction string, packets float64, now, before uint64) {
		frames := m.rate(metrics.Volume{Packets: now}, metrics.Volume{Packets: before}).packets
		text := fmt.Sprintf("  %s %.1f/frame", direction, packets/frames)
		if frames > 0 && packets > 0 && len([]rune(line+text)) <= m.width {
			line += text
		}
	}
	add("out", out.packets, m.last.FramesOut, m.previous.FramesOut)
	add("in", in.packets, m.last.FramesIn, m.previous.FramesIn)
	return line
}

// drops returns a line per reason with drops in the interval, or one that there are none.
func (m topModel) drops() []string {
	before := map[string]uint64{}
	for _, d := range m.previous.Drops {
		before[d.Reason] = d.Packets
	}
	var active []string
	total := uint64(0)
	for _, d := range m.last.Drops {
		total += d.Packets
		if n := d.Packets - before[d.Reason]; n > 0 && n <= d.Packets && m.seconds > 0 {
			active = append(active, fmt.Sprintf("%s%-22s %8s/s  %d in all", dropMark, d.Reason,
				si(float64(n)/m.seconds), d.Packets))
		}
	}
	if len(active) == 0 {
		return []string{fmt.Sprintf("no drops now, %d since the daemon started", total)}
	}
	return active
}

// nodeTable returns the table of nodes with its header.
func (m topModel) nodeTable(nodes []topNode) []string {
	c := newNodeColumns(m, nodes)
	kernel := func(text string) string {
		if m.last.FastPath == nil {
			return ""
		}
		return fmt.Sprintf(" %6s", text)
	}
	lines := []string{fmt.Sprintf("%-*s %9s %7s %8s %7s%s %9s %5s%s", c.name, nodeHeader, "OUT bit/s",
		"pkt/s", "IN bit/s", "pkt/s", kernel("KERNEL"), "RTT", "LOSS", c.recentHeader())}
	for _, n := range nodes {
		lines = append(lines, fmt.Sprintf("%-*s %9s %7s %8s %7s%s %9s %5s%s", c.name,
			fit(n.Name, c.name), si(n.out.bits), si(n.out.packets), si(n.in.bits), si(n.in.packets),
			kernel(kernelShare(n.kernel, n.out.bits+n.in.bits)), rtt(n.RTT), loss(n),
			recent(m.history[n.Name], c.recent)))
	}
	return lines
}

// flowTable returns the table of flows with its header.
func (m topModel) flowTable(flows []control.TopFlow) []string {
	c := newFlowColumns(m, flows)
	way := ""
	if m.last.FastPath != nil {
		way = "WAY"
	}
	lines := []string{c.line(flowLine{
		flow:      fmt.Sprintf("%s (1 of %d packets sampled)", flowHeader, max(1, m.last.Sample)),
		direction: "DIR", way: way, node: "NODE", bits: "bit/s", packets: "pkt/s"})}
	for _, f := range flows {
		lines = append(lines, c.line(m.flow(f)))
	}
	return lines
}

func (m topModel) flow(f control.TopFlow) flowLine {
	seconds := m.last.Interval
	if seconds <= 0 {
		seconds = 1
	}
	l := flowLine{flow: flowName(f), direction: "in", way: m.way(f), node: cmp.Or(f.Node, "-"),
		bits: si(float64(f.Bytes) * 8 / seconds), packets: si(float64(f.Packets) / seconds)}
	if f.Outbound {
		l.direction = "out"
	}
	if f.Dropped > 0 {
		l.note = fmt.Sprintf("%s%s %s/s", dropMark, f.Drop, si(float64(f.Dropped)/seconds))
	}
	return l
}

func (m topModel) foot() string {
	if m.filtering {
		return "/" + m.filter + "_"
	}
	foot := fmt.Sprintf("q quit  p pause  s sort: %s  / filter", m.order)
	if m.filter != "" {
		foot += ": " + m.filter + " (Esc clears it)"
	}
	if m.last.Missed > 0 {
		foot += fmt.Sprintf("  %d samples missed", m.last.Missed)
	}
	return foot
}

// si returns a number with three digits and a decimal prefix.
func si(v float64) string {
	for _, unit := range []string{"", "k", "M", "G"} {
		switch {
		case unit == "" && v < 1000:
			return fmt.Sprintf("%.0f ", v)
		case v < 10:
			return fmt.Sprintf("%.2f %s", v, unit)
		case v < 100:
			return fmt.Sprintf("%.1f %s", v, unit)
		case v < 1000:
			return fmt.Sprintf("%.0f %s", v, unit)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.1f T", v)
}

func rtt(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

func loss(n topNode) string {
	if n.RTT == 0 && n.Loss == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*n.Loss)
}

// sparkline draws values between 0 and their maximum.
func sparkline(values []float64) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	if len(values) == 0 {
		return ""
	}
	top := max(slices.Max(values), 1)
	var b strings.Builder
	for _, v := range values {
		b.WriteRune(levels[min(int(v/top*float64(len(levels))), len(levels)-1)])
	}
	return b.String()
}
