package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"weft/metrics"
)

// Parameters of StatusPath, for a part of a long list of nodes: at least as many nodes as Nodes
// says, in the order of their names, from the first name after After.
const (
	NodesParameter = "nodes"
	AfterParameter = "after"
)

// Select reduces the status to the nodes that the parameters of a request ask for. Without
// parameters, all nodes stay. The entries of one name stay together.
func (s *Status) Select(query url.Values) error {
	if !query.Has(NodesParameter) {
		if query.Has(AfterParameter) {
			return fmt.Errorf("%s needs %s=NUMBER", AfterParameter, NodesParameter)
		}
		return nil
	}
	n, err := strconv.Atoi(query.Get(NodesParameter))
	if err == nil && n <= 0 {
		err = errors.New("not positive")
	}
	if err != nil {
		return fmt.Errorf("%s=%q: want a positive number", NodesParameter, query.Get(NodesParameter))
	}
	s.selectNodes(query.Get(AfterParameter), n)
	return nil
}

func (s *Status) selectNodes(after string, n int) {
	later := slices.DeleteFunc(slices.Clone(s.Nodes), func(n Node) bool { return n.Name <= after })
	slices.SortStableFunc(later, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	if n < len(later) {
		last := later[n-1].Name
		for n < len(later) && later[n].Name == last {
			n++
		}
		if n < len(later) {
			s.NextAfter = last
		}
		later = later[:n]
	}
	s.Nodes = slices.Clip(later)
	if s.Traffic != nil {
		s.Traffic.Nodes = s.trafficOf(s.Traffic.Nodes)
	}
	if s.KernelTraffic != nil {
		s.KernelTraffic.Nodes = s.trafficOf(s.KernelTraffic.Nodes)
	}
}

// trafficOf returns the traffic of the nodes in the status, which are ordered by name.
func (s *Status) trafficOf(all []metrics.NodeTraffic) (kept []metrics.NodeTraffic) {
	for _, t := range all {
		_, found := slices.BinarySearchFunc(s.Nodes, t.Node,
			func(n Node, name string) int { return strings.Compare(n.Name, name) })
		if found {
			kept = append(kept, t)
		}
	}
	return kept
}
