package deploy

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"

	"weft/metrics"
)

// exported maps the names of the daemon's metrics to their labels, including those that Prometheus
// adds to a target.
func exported() map[string][]string {
	target := []string{"instance", "job"}
	names := map[string][]string{"process_cpu_seconds_total": target} // of the client library
	for _, m := range metrics.List() {
		names[m.Name] = slices.Concat(m.Labels, target)
	}
	return names
}

// checkQuery parses a query with Prometheus' own parser and checks every metric and label in it.
func checkQuery(t *testing.T, where, query string) (used []string) {
	t.Helper()
	e, err := parser.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	known := exported()
	var allowed []string // labels of the metrics of the query
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		v, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		own, ok := known[v.Name]
		if !ok {
			t.Errorf("%s: %s: no metric %s", where, query, v.Name)
		}
		for _, m := range v.LabelMatchers {
			if m.Name != labels.MetricName && !slices.Contains(own, m.Name) {
				t.Errorf("%s: %s has no label %s", where, v.Name, m.Name)
			}
		}
		used, allowed = append(used, v.Name), append(allowed, own...)
		return nil
	})
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		var names []string
		switch n := n.(type) {
		case *parser.AggregateExpr:
			names = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				names = slices.Concat(n.VectorMatching.MatchingLabels, n.VectorMatching.Include)
			}
		}
		for _, name := range names {
			if !slices.Contains(allowed, name) {
				t.Errorf("%s: %s: no metric of it has the label %s", where, query, name)
			}
		}
		return nil
	})
	return used
}

// grafana replaces the variables of a dashboard in a query.
func grafana(query string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$instance", ".+").Replace(query)
}

func TestGrafanaDashboard(t *testing.T) {
	b, err := os.ReadFile("grafana/weft.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	used := map[string]bool{}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 || ids[p.ID] {
			t.Errorf("%s: %d queries, ID %d", p.Title, len(p.Targets), p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			for _, name := range checkQuery(t, p.Title, grafana(target.Expr)) {
				used[name] = true
			}
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q overlaps %q or leaves the grid", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	if len(used) < 15 {
		t.Errorf("only %d metrics are shown: %v", len(used), slices.Sorted(maps.Keys(used)))
	}
}

func TestPrometheusAlerts(t *testing.T) {
	b, err := os.ReadFile("prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict(b, &file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			used := checkQuery(t, r.Alert, r.Expr)
			if len(used) == 0 || seen[r.Alert] || r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
				t.Errorf("%+v: want a query, a name of its own, a severity and a summary", r)
			}
			seen[r.Alert] = true
			if r.For != "" {
				if _, err := model.ParseDuration(r.For); err != nil {
					t.Errorf("%s: %v", r.Alert, err)
				}
			}
			checkTemplates(t, r.Alert, used, r.Annotations)
		}
	}
	if len(seen) == 0 {
		t.Error("no alerts")
	}
}

// checkTemplates checks the labels in the texts of an alert.
func checkTemplates(t *testing.T, alert string, used []string, texts map[string]string) {
	t.Helper()
	known := exported()
	for _, text := range texts {
		for _, part := range strings.Split(text, "$labels.")[1:] {
			label, _, _ := strings.Cut(part, " ")
			for _, name := range used {
				if !slices.Contains(known[name], label) {
					t.Errorf("%s: %s has no label %s", alert, name, label)
				}
			}
		}
	}
}
