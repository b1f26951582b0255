package metrics

import (
	"slices"
	"strings"
)

// nodeLimiter limits the number of node labels without decreasing any counter. The first nodes seen
// keep series of their own while they are known. All others are summed as [OtherNodes], and the
// traffic of a node stays in that sum after the node is gone: to Prometheus a decrease would be a
// restart, and rate() would show a burst that never happened.
type nodeLimiter struct {
	limit    int
	used     int // bytes of the page that the series of named nodes take
	named    map[string]bool
	summed   map[string]NodeTraffic // last values of the summed nodes
	retired  NodeTraffic            // traffic of summed nodes that are gone or restarted at zero
	exported bool                   // the sum has been exported and must not disappear
}

// nodesRoom is the part of the page for series of nodes, in bytes. With names of up to 10 bytes it
// is room for DefaultMaxNodes.
const nodesRoom = 56_000

// nodeRoom returns the bytes of the page that the six series of a node take: about 62 for each
// beside the name.
func nodeRoom(name string) int { return 6 * (len(name) + 62) }

func newNodeLimiter(limit int) *nodeLimiter {
	return &nodeLimiter{limit: limit, named: map[string]bool{}, summed: map[string]NodeTraffic{}}
}

// apply returns at most limit nodes, sorted by name, followed by the sum of the rest if there has
// ever been one.
func (l *nodeLimiter) apply(nodes []NodeTraffic) []NodeTraffic {
	now := byName(nodes)
	l.forget(now)

	names := make([]string, 0, len(now))
	for name := range now {
		names = append(names, name)
	}
	slices.Sort(names)
	var shown []NodeTraffic
	sum := NodeTraffic{Node: OtherNodes}
	for _, name := range names {
		if l.hasName(name) {
			shown = append(shown, now[name])
			continue
		}
		if last := l.summed[name]; restarted(last, now[name]) {
			l.retired.Add(last)
		}
		l.summed[name] = now[name]
		l.exported = true
		sum.Add(now[name])
	}
	if l.exported {
		sum.Add(l.retired)
		shown = append(shown, sum)
	}
	return shown
}

// forget removes nodes that are no longer known.
func (l *nodeLimiter) forget(now map[string]NodeTraffic) {
	for name := range l.named {
		if _, ok := now[name]; !ok {
			delete(l.named, name)
			l.used -= nodeRoom(name)
		}
	}
	for name, last := range l.summed {
		if _, ok := now[name]; !ok {
			l.retired.Add(last)
			delete(l.summed, name)
		}
	}
}

// hasName reports whether the node has series of its own. A new node gets them if the limit allows.
func (l *nodeLimiter) hasName(name string) bool {
	if l.named[name] {
		return true
	}
	_, summed := l.summed[name]
	if summed || name == OtherNodes || len(l.named) >= l.limit ||
		l.used+nodeRoom(name) > nodesRoom {
		return false
	}
	l.used += nodeRoom(name)
	l.named[name] = true
	return true
}

// byName sums the entries of each name. Invalid UTF-8, which Prometheus rejects in labels, is
// replaced first.
func byName(nodes []NodeTraffic) map[string]NodeTraffic {
	m := make(map[string]NodeTraffic, len(nodes))
	for _, n := range nodes {
		name := strings.ToValidUTF8(n.Node, "\uFFFD")
		sum := m[name]
		sum.Node = name
		sum.Add(n)
		m[name] = sum
	}
	return m
}

// Add adds the counts of o.
func (n *NodeTraffic) Add(o NodeTraffic) {
	n.Out.add(o.Out)
	n.In.add(o.In)
	n.FastPath.Out.add(o.FastPath.Out)
	n.FastPath.In.add(o.FastPath.In)
}

func (v *Volume) add(o Volume) {
	v.Packets += o.Packets
	v.Bytes += o.Bytes
}

// restarted reports whether a node's counters restarted at zero, as they do if it leaves and comes
// back between two scrapes.
func restarted(last, now NodeTraffic) bool {
	return now.Out.Packets < last.Out.Packets || now.In.Packets < last.In.Packets
}
