package agent

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"weft/cmd/control"
)

// membership logs the nodes that join and leave, in bursts: one line for all changes of an
// interval, with the first names only.
type membership struct {
	nodes        map[string]string // name to subnets
	joined, left []string          // since the last line
	logged       time.Time         // last line
}

const (
	// membershipInterval is the shortest time between two lines.
	membershipInterval = 5 * time.Second
	// membershipNames is the number of names in a line.
	membershipNames = 5
)

// update compares the nodes with those of the last call. A node with other subnets joins again.
func (m *membership) update(peers []control.Node) {
	current := make(map[string]string, len(peers))
	for _, p := range peers {
		subnets := joinValid(p.Subnet, p.Subnet6)
		if before, ok := current[p.Name]; ok {
			subnets = before + " " + subnets
		}
		current[p.Name] = subnets
	}
	for name, subnets := range current {
		if m.nodes[name] != subnets {
			m.joined = append(m.joined, name)
		}
	}
	for name := range m.nodes {
		if _, ok := current[name]; !ok {
			m.left = append(m.left, name)
		}
	}
	m.nodes = current
}

// report logs the changes since the last line, if it is time for one.
func (m *membership) report(log *slog.Logger, now time.Time) {
	if len(m.joined)+len(m.left) == 0 || now.Sub(m.logged) < membershipInterval {
		return
	}
	var attrs []any
	if len(m.joined) > 0 {
		attrs = append(attrs, "joined", m.names(m.joined))
	}
	if len(m.left) > 0 {
		attrs = append(attrs, "left", m.names(m.left))
	}
	log.Info("other nodes changed", append(attrs, "nodes", len(m.nodes))...)
	m.joined, m.left, m.logged = nil, nil, now
}

// names lists the first nodes, with their subnets.
func (m *membership) names(all []string) string {
	slices.Sort(all)
	all = slices.Compact(all)
	var texts []string
	for _, name := range all[:min(len(all), membershipNames)] {
		text := name
		if subnets := m.nodes[name]; subnets != "" {
			text += " (" + subnets + ")"
		}
		texts = append(texts, text)
	}
	if more := len(all) - membershipNames; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}
