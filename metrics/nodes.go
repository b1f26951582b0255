package metrics

import (
	"slices"
	"strings"
)

// nodeBound keeps the number of node labels below a limit without ever letting
// a counter fall: the first nodes seen keep a series each for as long as they
// are known, all others are summed as [OtherNodes], where what a node counted
// stays in the sum after the node is gone. (A sum that fell would look like a
// restart to Prometheus, and rate() would show a burst that never was.)
type nodeBound struct {
	limit   int
	named   map[string]bool
	others  map[string]NodeTraffic // last seen values of the summed nodes
	retired NodeTraffic            // of the summed nodes that went or began again
	used    bool                   // the sum has been shown, so it stays
}

func newNodeBound(limit int) *nodeBound {
	return &nodeBound{limit: limit, named: map[string]bool{}, others: map[string]NodeTraffic{}}
}

// apply returns at most limit named nodes in order of name, and then the sum of
// the rest if there ever was one.
func (b *nodeBound) apply(nodes []NodeTraffic) []NodeTraffic {
	now := byName(nodes)
	b.forget(now)

	names := make([]string, 0, len(now))
	for name := range now {
		names = append(names, name)
	}
	slices.Sort(names)
	var shown []NodeTraffic
	sum := NodeTraffic{Node: OtherNodes}
	for _, name := range names {
		if b.hasName(name) {
			shown = append(shown, now[name])
			continue
		}
		if last := b.others[name]; restarted(last, now[name]) {
			b.retired.add(last)
		}
		b.others[name] = now[name]
		b.used = true
		sum.add(now[name])
	}
	if b.used {
		sum.add(b.retired)
		shown = append(shown, sum)
	}
	return shown
}

// forget drops what is no longer known.
func (b *nodeBound) forget(now map[string]NodeTraffic) {
	for name := range b.named {
		if _, ok := now[name]; !ok {
			delete(b.named, name)
		}
	}
	for name, last := range b.others {
		if _, ok := now[name]; !ok {
			b.retired.add(last)
			delete(b.others, name)
		}
	}
}

// hasName says whether the node has a series of its own, giving it one if there
// is room and it is not in the sum already.
func (b *nodeBound) hasName(name string) bool {
	if b.named[name] {
		return true
	}
	_, summed := b.others[name]
	if summed || name == OtherNodes || len(b.named) >= b.limit {
		return false
	}
	b.named[name] = true
	return true
}

// byName sums entries of one name. Bytes that are no UTF-8, which Prometheus
// refuses in a label, are replaced first.
func byName(nodes []NodeTraffic) map[string]NodeTraffic {
	m := make(map[string]NodeTraffic, len(nodes))
	for _, n := range nodes {
		name := strings.ToValidUTF8(n.Node, "\uFFFD")
		sum := m[name]
		sum.Node = name
		sum.add(n)
		m[name] = sum
	}
	return m
}

func (n *NodeTraffic) add(o NodeTraffic) {
	n.Out.Packets += o.Out.Packets
	n.Out.Bytes += o.Out.Bytes
	n.In.Packets += o.In.Packets
	n.In.Bytes += o.In.Bytes
}

// restarted says that a node's counters began again at zero, as they do when it
// leaves and comes back between two scrapes.
func restarted(last, now NodeTraffic) bool {
	return now.Out.Packets < last.Out.Packets || now.In.Packets < last.In.Packets
}
