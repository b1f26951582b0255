package agent

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/lease"
)

// membership logs the nodes that join and leave, in bursts: one line for all changes of an
// interval, with the first names only.
type membership struct {
	view, last *peerView // now, and at the last line; nil: none
	logged     time.Time // last line
}

const (
	// membershipInterval is the shortest time between two lines.
	membershipInterval = 5 * time.Second
	// membershipNames is the number of names in a line.
	membershipNames = 5
)

// update replaces the view of the other nodes.
func (m *membership) update(v *peerView) { m.view = v }

// report logs the changes since the last line, if it is time for one. A node with other subnets
// joins again.
func (m *membership) report(log *slog.Logger, now time.Time) {
	if m.view == m.last || now.Sub(m.logged) < membershipInterval {
		return
	}
	last := m.last
	if last == nil {
		last = &peerView{}
	}
	joined, left := map[string]bool{}, map[string]bool{}
	for _, c := range lease.Changes(last.leases, m.view.leases) {
		if c.After != nil && c.Before == nil && !c.After.Overlaps(m.view.self) {
			joined[c.After.Node] = true
		}
		if c.Before != nil && c.After == nil && !c.Before.Overlaps(last.self) {
			left[c.Before.Node] = true
		}
	}
	m.last = m.view
	if len(joined)+len(left) == 0 {
		return
	}
	m.logged = now
	subnets := map[string]string{}
	for l := range m.view.peers() {
		if left[l.Node] { // it still has this subnet, or has another now
			delete(left, l.Node)
			joined[l.Node] = true
		}
		if joined[l.Node] {
			text := joinValid(l.Subnet, l.Subnet6)
			subnets[l.Node] = strings.TrimSpace(subnets[l.Node] + " " + text)
		}
	}
	var attrs []any
	if len(joined) > 0 {
		attrs = append(attrs, "joined", nodeNames(joined, subnets))
	}
	if len(left) > 0 {
		attrs = append(attrs, "left", nodeNames(left, nil))
	}
	log.Info("other nodes changed", append(attrs, "nodes", m.view.plan.Parts.Len())...)
}

// nodeNames lists the first nodes, with their subnets.
func nodeNames(nodes map[string]bool, subnets map[string]string) string {
	all := slices.Sorted(maps.Keys(nodes))
	var texts []string
	for _, name := range all[:min(len(all), membershipNames)] {
		text := name
		if subnets[name] != "" {
			text += " (" + subnets[name] + ")"
		}
		texts = append(texts, text)
	}
	if more := len(all) - membershipNames; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}
