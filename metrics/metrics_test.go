package metrics

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// full returns a snapshot in which every metric has a different value.
func full() Snapshot {
	return Snapshot{
		Ready:          true,
		Conditions:     []Condition{{"lease", true}, {"device", false}},
		StoreConnected: true,
		StoreRevision:  71,
		Unreachable:    1,
		Lease:          Lease{Held: true, Age: 90 * time.Second, ExpiresIn: 24*time.Hour - 90*time.Second},
		Nodes:          2,
		Probe:          &Probe{Answered: 31, Lost: 32, Paths: []ProbePath{{"a", 0.5, time.Millisecond, 1472, 1480}}},
		Traffic: &Traffic{
			Engine:   "portable",
			Features: []Feature{{"udp-gso", false, "too old"}, {"multi-queue", true, ""}},
			Out:      Volume{11, 1100}, In: Volume{12, 1200},
			Drops:       []Drop{{Reason: "short", Packets: 3}, {Reason: "unknown-node"}},
			Overflows:   []Overflow{{"socket", 4}, {"tun", 5}},
			Recreations: []Recreation{{"device", 6}, {"socket", 0}},
			ICMPSent:    21, ICMPSuppressed: 22,
			FastPath: FastPath{Active: true, Out: Volume{31, 32}, In: Volume{33, 34},
				Passed: []Drop{{Reason: "bulk", Packets: 35}}},
			Nodes: []NodeTraffic{
				{Node: "b", Out: Volume{7, 700}, In: Volume{8, 800},
					FastPath: NodeFastPath{Out: Volume{5, 500}, In: Volume{6, 600}}},
				{Node: "a", Out: Volume{9, 900}, In: Volume{10, 1000}},
			},
		},
		Kernel: &KernelTraffic{Devices: []DeviceTraffic{{"flannel.1", Volume{41, 4100}, Volume{42, 4200}, 43, 44}}},
		Cloud: []CloudCall{{"gce", "routes.list", 51, map[string]uint64{"denied": 52, "throttled": 53}},
			{"gce", "metadata", 54, nil}},
		IPsec:            &IPsec{51, 52, 53},
		ReconcilerInSync: true,
		KernelRepairs:    13,
		RulesInPlace:     true,
		RuleRepairs:      14,
	}
}

// scrapeText returns the response of the handler.
func scrapeText(t *testing.T, o Options) string {
	t.Helper()
	var logged bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&logged, nil))
	w := httptest.NewRecorder()
	Handler(o).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || logged.Len() > 0 {
		t.Fatalf("status %d, logged %q", w.Code, logged.String())
	}
	return w.Body.String()
}

// ownSamples returns the lines of the daemon's metrics.
func ownSamples(t *testing.T, o Options) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(scrapeText(t, o)) {
		if strings.HasPrefix(line, "weft_") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// has reports whether one of the lines is a sample of the metric.
func has(lines []string, metric string) bool {
	return slices.ContainsFunc(lines, func(line string) bool {
		rest, ok := strings.CutPrefix(line, metric)
		return ok && (rest[0] == '{' || rest[0] == ' ')
	})
}

func TestHandlerFullSnapshot(t *testing.T) {
	const want = `
weft_build_info{commit="abc",goversion="go1.26",version="v1"} 1
weft_ready 1
weft_condition{condition="device"} 0
weft_condition{condition="lease"} 1
weft_store_connected 1
weft_store_revision 71
weft_nodes 2
weft_nodes_unreachable 1
weft_lease_held 1
weft_lease_age_seconds 90
weft_lease_expiry_seconds 86310
weft_reconciler_in_sync 1
weft_kernel_repairs_total 13
weft_rules_in_place 1
weft_rule_repairs_total 14
weft_probe_nodes 1
weft_probe_echoes_total{outcome="answered"} 31
weft_probe_echoes_total{outcome="lost"} 32
weft_probe_loss_ratio{node="a"} 0.5
weft_probe_rtt_seconds{node="a"} 0.001
weft_probe_small_mtu_nodes 1
weft_probe_path_mtu_bytes{node="a"} 1472
weft_packets_total{direction="in"} 12
weft_packets_total{direction="out"} 11
weft_bytes_total{direction="in"} 1200
weft_bytes_total{direction="out"} 1100
weft_drops_total{reason="short"} 3
weft_drops_total{reason="unknown-node"} 0
weft_queue_overflows_total{queue="socket"} 4
weft_queue_overflows_total{queue="tun"} 5
weft_recreations_total{object="device"} 6
weft_recreations_total{object="socket"} 0
weft_icmp_errors_total{outcome="sent"} 21
weft_icmp_errors_total{outcome="suppressed"} 22
weft_fast_path_active 1
weft_fast_path_packets_total{direction="in"} 33
weft_fast_path_packets_total{direction="out"} 31
weft_fast_path_bytes_total{direction="in"} 34
weft_fast_path_bytes_total{direction="out"} 32
weft_fast_path_passed_total{reason="bulk"} 35
weft_engine_info{engine="portable"} 1
weft_engine_feature{feature="multi-queue"} 1
weft_engine_feature{feature="udp-gso"} 0
weft_device_packets_total{device="flannel.1",direction="out"} 41
weft_device_packets_total{device="flannel.1",direction="in"} 42
weft_device_bytes_total{device="flannel.1",direction="out"} 4100
weft_device_bytes_total{device="flannel.1",direction="in"} 4200
weft_device_dropped_total{device="flannel.1",direction="out"} 43
weft_device_dropped_total{device="flannel.1",direction="in"} 44
weft_ipsec_associations{state="established"} 51
weft_ipsec_associations{state="missing"} 52
weft_ipsec_charon_restarts_total 53
weft_cloud_calls_total{call="metadata",provider="gce"} 54
weft_cloud_calls_total{call="routes.list",provider="gce"} 51
weft_cloud_errors_total{call="routes.list",kind="denied",provider="gce"} 52
weft_cloud_errors_total{call="routes.list",kind="throttled",provider="gce"} 53
weft_node_packets_total{direction="in",node="a"} 10
weft_node_packets_total{direction="in",node="b"} 8
weft_node_packets_total{direction="out",node="a"} 9
weft_node_packets_total{direction="out",node="b"} 7
weft_node_bytes_total{direction="in",node="a"} 1000
weft_node_bytes_total{direction="in",node="b"} 800
weft_node_bytes_total{direction="out",node="a"} 900
weft_node_bytes_total{direction="out",node="b"} 700
weft_node_fast_path_bytes_total{direction="in",node="a"} 0
weft_node_fast_path_bytes_total{direction="in",node="b"} 600
weft_node_fast_path_bytes_total{direction="out",node="a"} 0
weft_node_fast_path_bytes_total{direction="out",node="b"} 500
`
	got := ownSamples(t, Options{Build: Build{"v1", "abc", "go1.26"}, Read: full})
	for line := range strings.Lines(want[1:]) {
		if i := slices.Index(got, strings.TrimSpace(line)); i < 0 {
			t.Errorf("missing: %s", line)
		} else {
			got = slices.Delete(got, i, i+1)
		}
	}
	for _, line := range got {
		t.Errorf("not expected: %s", line)
	}
}

func TestMetricsLint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrapeText(t, Options{Read: full}))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestListWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, info := range List() {
		if seen[info.Name] {
			t.Errorf("%s is listed twice", info.Name)
		}
		seen[info.Name] = true
		if !strings.HasPrefix(info.Name, "weft_") || info.Help == "" {
			t.Errorf("%+v: want the prefix weft_ and a help text", info)
		}
		if info.Kind == counter != strings.HasSuffix(info.Name, "_total") {
			t.Errorf("%s is a %s", info.Name, info.Kind)
		}
	}
}

func TestAbsentMetrics(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Snapshot)
		absent []string
	}{
		{"no lease", func(s *Snapshot) { s.Lease = Lease{} },
			[]string{"weft_lease_age_seconds", "weft_lease_expiry_seconds"}},
		{"permanent lease", func(s *Snapshot) { s.Lease.Permanent = true }, []string{"weft_lease_expiry_seconds"}},
		{"no dataplane", func(s *Snapshot) { s.Traffic = nil }, []string{"weft_packets_total", "weft_bytes_total",
			"weft_drops_total", "weft_queue_overflows_total", "weft_recreations_total", "weft_icmp_errors_total", "weft_engine_info",
			"weft_fast_path_active", "weft_fast_path_packets_total", "weft_fast_path_bytes_total",
			"weft_fast_path_passed_total", "weft_engine_feature", "weft_node_packets_total",
			"weft_node_bytes_total", "weft_node_fast_path_bytes_total"}},
		{"no fast path", func(s *Snapshot) { s.Traffic.FastPath = FastPath{Passed: s.Traffic.FastPath.Passed} },
			[]string{"weft_node_fast_path_bytes_total"}},
		{"no kernel backend", func(s *Snapshot) { s.Kernel = nil }, []string{"weft_device_packets_total",
			"weft_device_bytes_total", "weft_device_dropped_total"}},
		{"no ipsec", func(s *Snapshot) { s.IPsec = nil }, []string{"weft_ipsec_associations",
			"weft_ipsec_charon_restarts_total"}},
		{"no probe", func(s *Snapshot) { s.Probe = nil }, []string{"weft_probe_nodes", "weft_probe_echoes_total",
			"weft_probe_loss_ratio", "weft_probe_rtt_seconds", "weft_probe_small_mtu_nodes",
			"weft_probe_path_mtu_bytes"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := full()
			test.change(&s)
			lines := ownSamples(t, Options{Read: func() Snapshot { return s }})
			for _, info := range List() {
				got, want := has(lines, info.Name), !slices.Contains(test.absent, info.Name)
				if got != want {
					t.Errorf("%s present: %v, want %v", info.Name, got, want)
				}
			}
		})
	}
}

func TestHandlerRuntimeMetrics(t *testing.T) {
	s := full()
	// Neither invalid UTF-8 nor the name of the sum may break a scrape.
	s.Traffic.Nodes = append(s.Traffic.Nodes, NodeTraffic{Node: "bad\xff"}, NodeTraffic{Node: OtherNodes},
		NodeTraffic{Node: "a"})
	lines := strings.Split(scrapeText(t, Options{Read: func() Snapshot { return s }}), "\n")
	names := []string{"go_goroutines", "process_open_fds"}
	for _, info := range List() {
		names = append(names, info.Name)
	}
	for _, name := range names {
		if !has(lines, name) {
			t.Errorf("%s is not served", name)
		}
	}
}

func TestHandlerFailedMetric(t *testing.T) {
	var logged bytes.Buffer
	s := full()
	s.Conditions = append(s.Conditions, s.Conditions[0]) // two samples with one name
	h := Handler(Options{Read: func() Snapshot { return s }, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "weft_ready 1") {
		t.Errorf("status %d, body %q", w.Code, w.Body.String())
	}
	if !strings.Contains(logged.String(), "weft_condition") {
		t.Errorf("logged %q, want the name of the metric", logged.String())
	}
}

func node(name string, n uint64) NodeTraffic {
	return NodeTraffic{Node: name, Out: Volume{n, n}, In: Volume{n, n},
		FastPath: NodeFastPath{Out: Volume{n, n}, In: Volume{n, n}}}
}

func TestNodeLimiter(t *testing.T) {
	b := newNodeLimiter(2)
	steps := []struct {
		name       string
		seen, want []NodeTraffic
	}{
		{"room for all", []NodeTraffic{node("b", 1), node("a", 2)}, []NodeTraffic{node("a", 2), node("b", 1)}},
		{"a third node is summed", []NodeTraffic{node("a", 2), node("b", 1), node("aa", 5)},
			[]NodeTraffic{node("a", 2), node("b", 1), node("other", 5)}},
		{"a free name goes to a new node, not to a summed one",
			[]NodeTraffic{node("b", 1), node("aa", 6), node("c", 1)},
			[]NodeTraffic{node("b", 1), node("c", 1), node("other", 6)}},
		{"a restarted counter does not lower the sum", []NodeTraffic{node("b", 1), node("c", 1), node("aa", 1)},
			[]NodeTraffic{node("b", 1), node("c", 1), node("other", 7)}},
		{"a removed node does not lower the sum", []NodeTraffic{node("b", 1), node("c", 1)},
			[]NodeTraffic{node("b", 1), node("c", 1), node("other", 7)}},
		{"a node that comes back adds to the sum", []NodeTraffic{node("b", 1), node("c", 1), node("aa", 3)},
			[]NodeTraffic{node("b", 1), node("c", 1), node("other", 10)}},
		{"a node named other is summed, duplicate names are merged",
			[]NodeTraffic{node("b", 1), node("b", 2), node("other", 1)},
			[]NodeTraffic{node("b", 3), node("other", 11)}},
	}
	for _, step := range steps {
		if got := b.apply(step.seen); !slices.Equal(got, step.want) {
			t.Fatalf("%s: got %v, want %v", step.name, got, step.want)
		}
	}
}

func TestNodeLabelLimit(t *testing.T) {
	s := full()
	s.Traffic.Nodes = nil
	for i := range 3 * DefaultMaxNodes {
		s.Traffic.Nodes = append(s.Traffic.Nodes, node(fmt.Sprintf("n%d", i), 1))
	}
	series := 0
	for _, line := range ownSamples(t, Options{Read: func() Snapshot { return s }}) {
		if strings.HasPrefix(line, "weft_node_packets_total{") {
			series++
		}
	}
	if want := 2 * (DefaultMaxNodes + 1); series != want {
		t.Errorf("%d series, want %d", series, want)
	}
}

// TestDocsListMetrics compares the metrics with the table in docs/metrics.md: a row has the name,
// the type and the labels of one metric.
func TestDocsListMetrics(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([a-z_]+)`")
	words := func(cell string) (all []string) {
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			all = append(all, m[1])
		}
		return all
	}
	shown := map[string][]string{} // the labels of the row
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`weft_") {
			continue
		}
		for _, name := range words(cells[1]) {
			shown[name] = words(cells[3])
		}
	}
	for _, info := range List() {
		labels, ok := shown[info.Name]
		delete(shown, info.Name)
		if !ok {
			t.Errorf("%s has no row in docs/metrics.md", info.Name)
			continue
		}
		for _, label := range info.Labels {
			if !slices.Contains(labels, label) {
				t.Errorf("%s has the label %s, which docs/metrics.md does not show", info.Name, label)
			}
		}
	}
	for name := range shown {
		t.Errorf("docs/metrics.md has a row for %s, which does not exist", name)
	}
}

// TestPageSize checks the size of the page of a daemon with 10,000 nodes, whatever their names.
func TestPageSize(t *testing.T) {
	const limit = 100_000
	for _, length := range []int{8, 20, 63, 253} {
		s := full()
		s.Traffic.Nodes, s.Probe.Paths = nil, nil
		for i := range 10_000 {
			name := fmt.Sprintf("%0*d", length, i)
			v := Volume{1e8 + uint64(i), 1e11 + uint64(i)}
			s.Traffic.Nodes = append(s.Traffic.Nodes, NodeTraffic{Node: name, Out: v, In: v, FastPath: NodeFastPath{v, v}})
			s.Probe.Paths = append(s.Probe.Paths, ProbePath{name, 1. / 3, 123457 * time.Nanosecond, 1472, 1480})
		}
		page := scrapeText(t, Options{Read: func() Snapshot { return s }})
		named := strings.Count(page, "weft_node_bytes_total{direction=\"in\"")
		probed := strings.Count(page, "weft_probe_loss_ratio{")
		t.Logf("names of %d bytes: %d bytes, %d nodes, %d paths", length, len(page), named, probed)
		if len(page) > limit || named < 30 || probed < 20 {
			t.Errorf("names of %d bytes: %d bytes, limit %d; %d nodes, %d paths",
				length, len(page), limit, named, probed)
		}
	}
}
