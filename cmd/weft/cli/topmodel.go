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
			all = append(all, topNode{n, m.rate(n.Out, b.Out), m.rate(n.In, b.In)})
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
		if strings.Contains(flowName(f)+" "+f.Node+" "+f.Drop, m.filter) {
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
	lines := []string{m.title()}
	lines = append(lines, m.drops()...)
	const fixed = 2 // headers of the tables
	room := max(0, m.height-len(lines)-fixed-1)
	nodes, flows := m.nodes(), m.flows()
	// Half of the room for each, unless one does not need it.
	forNodes := min(len(nodes), max(room/2, room-len(flows)))
	forFlows := min(len(flows), room-forNodes)
	name := nodeWidth(m.width)
	lines = append(lines, fmt.Sprintf("%-*s %9s %8s %9s %8s %9s %6s  %s", name, nodeHeader,
		"OUT bit/s", "pkt/s", "IN bit/s", "pkt/s", "RTT", "LOSS", "LAST 20 s"))
	for _, n := range nodes[:forNodes] {
		lines = append(lines, fmt.Sprintf("%-*s %9s %8s %9s %8s %9s %6s  %s", name, fit(n.Name, name),
			si(n.out.bits), si(n.out.packets), si(n.in.bits), si(n.in.packets), rtt(n.RTT), loss(n),
			sparkline(m.history[n.Name])))
	}
	flows = flows[:forFlows]
	columns := flowColumns(m.width, flows)
	lines = append(lines, columns.line(
		fmt.Sprintf("%s (1 of %d packets sampled)", flowHeader, max(1, m.last.Sample)),
		"DIR", "NODE", "bit/s", "pkt/s", ""))
	for _, f := range flows {
		lines = append(lines, m.flow(f, columns))
	}
	lines = append(lines, m.foot())
	for i := range lines {
		lines[i] = cut(lines[i], m.width)
	}
	return lines[:min(len(lines), max(m.height, 1))]
}

func (m topModel) title() string {
	t := &m.last
	out, in := m.rate(t.Out, m.previous.Out), m.rate(t.In, m.previous.In)
	title := fmt.Sprintf("weft top  %s  %s  out %sbit/s %spkt/s%s  in %sbit/s %spkt/s%s  %s", t.Node, t.Backend,
		si(out.bits), si(out.packets), perFrame(t.Out.Packets-m.previous.Out.Packets, t.FramesOut-m.previous.FramesOut),
		si(in.bits), si(in.packets), perFrame(t.In.Packets-m.previous.In.Packets, t.FramesIn-m.previous.FramesIn),
		sparkline(m.history[totalName]))
	if t.Estimated {
		title += "  estimated"
	}
	if m.paused {
		title += "  PAUSED"
	}
	return title
}

// perFrame returns the packets per frame, or nothing if there are no frames.
func perFrame(packets, frames uint64) string {
	if frames == 0 || packets == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.1f/frame)", float64(packets)/float64(frames))
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

func (m topModel) flow(f control.TopFlow, columns columns) string {
	direction, note := "in", ""
	if f.Outbound {
		direction = "out"
	}
	seconds := m.last.Interval
	if seconds <= 0 {
		seconds = 1
	}
	if f.Dropped > 0 {
		note = fmt.Sprintf("%s%s %s/s", dropMark, f.Drop, si(float64(f.Dropped)/seconds))
	}
	return columns.line(flowName(f), direction, cmp.Or(f.Node, "-"),
		si(float64(f.Bytes)*8/seconds), si(float64(f.Packets)/seconds), note)
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
