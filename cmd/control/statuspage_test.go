package control

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"weft/metrics"
)

func statusOf(names ...string) Status {
	s := Status{Traffic: &metrics.Traffic{}}
	for _, name := range names {
		s.Nodes = append(s.Nodes, Node{Name: name})
		s.Traffic.Nodes = append(s.Traffic.Nodes, metrics.NodeTraffic{Node: name})
	}
	return s
}

// TestSelectPages follows the pages to the end: each node is on one page, together with its other
// entries.
func TestSelectPages(t *testing.T) {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("n%d", i*7%300)) // three or four entries each
	}
	for _, size := range []int{1, 2, 7, 299, 1000, 5000} {
		var got []string
		after, pages := "", 0
		for more := true; more; pages++ {
			s := statusOf(names...)
			query := url.Values{NodesParameter: {fmt.Sprint(size)}, AfterParameter: {after}}
			if err := s.Select(query); err != nil {
				t.Fatal(err)
			}
			if len(s.Nodes) > size+3 || len(s.Traffic.Nodes) != len(s.Nodes) {
				t.Fatalf("size %d: %d nodes, traffic of %d", size, len(s.Nodes), len(s.Traffic.Nodes))
			}
			for _, n := range s.Nodes {
				got = append(got, n.Name)
			}
			after, more = s.NextAfter, s.NextAfter != ""
		}
		if !slices.Equal(got, slices.Sorted(slices.Values(names))) {
			t.Errorf("size %d: %d nodes on %d pages", size, len(got), pages)
		}
	}
}

func TestSelectParameters(t *testing.T) {
	for query, ok := range map[string]bool{
		"": true, "nodes=1": true, "nodes=2&after=zzz": true,
		"after=a": false, "nodes=0": false, "nodes=-1": false, "nodes=all": false, "nodes=": false,
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		s := statusOf("b", "a")
		if err := s.Select(values); (err == nil) != ok {
			t.Errorf("%q: %v", query, err)
		}
		if query == "" && len(s.Nodes) != 2 {
			t.Errorf("without parameters: %d nodes", len(s.Nodes))
		}
	}
}
