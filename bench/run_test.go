package bench

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/bench/report"
	"weft/deploy/lab"
)

// wire is the underlay of the tests.
var wire = report.Underlay{Mode: "wire", MTU: 1500}

// newCase returns a case with the headline rate.
func newCase(name string, nodes int, run workload) Case {
	return Case{report.Case{Name: name, Headlines: []string{"rate"}}, nodes, run}
}

// Targets take turns. A target that fails has no further turn and no series. A round gets the rate
// of the rounds before.
func TestRounds(t *testing.T) {
	var turns []string
	c := newCase("tcp-1", 2,
		func(_ context.Context, o *overlay, _ report.Seconds, previous report.Sample) (report.Sample, error) {
			turns = append(turns, o.target.Name)
			if o.target.Name == "b" && len(turns) > 3 {
				return nil, errors.New("broken")
			}
			return report.Sample{"rate": previous["rate"] + 1}, nil
		})
	var lines strings.Builder
	r := &run{plan: Plan{Rounds: 3}, progress: &lines, total: 9, result: &report.Result{}}
	overlays := []*overlay{{target: newTarget("a", "", nil)}, {target: newTarget("b", "", nil)},
		{target: newTarget("c", "", nil)}}
	if err := r.measureRounds(t.Context(), wire, c, overlays); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "c", "a", "b", "c", "a", "c"}; !slices.Equal(turns, want) {
		t.Errorf("turns %v, want %v", turns, want)
	}
	if len(r.result.Series) != 2 || r.result.Find(wire, "tcp-1", "b") != nil {
		t.Errorf("series %+v, want those of a and c", r.result.Series)
	}
	var rates []float64
	for _, s := range r.result.Find(wire, "tcp-1", "c").Samples {
		rates = append(rates, s["rate"])
	}
	if !slices.Equal(rates, []float64{1, 2, 2.5}) {
		t.Errorf("rates %v, want each round to start at the median of the previous ones", rates)
	}
	if skipped := r.result.Skipped; len(skipped) != 1 ||
		skipped[0] != (report.Skip{Underlay: wire, Case: "tcp-1", Target: "b", Reason: "broken"}) {
		t.Errorf("skipped %+v", skipped)
	}
	if r.done != r.total {
		t.Errorf("%d of %d measurements at the end", r.done, r.total)
	}
	r.skip(wire, "", "d", errors.New("no driver"), 0)
	for _, want := range []string{"  wire 1500  tcp-1  b: skipped: broken\n", "  wire 1500  d: skipped: no driver\n"} {
		if !strings.Contains(lines.String(), want) {
			t.Errorf("want %q in:\n%s", want, lines.String())
		}
	}
}

// An interrupted measurement is not a skip, and earlier samples stay.
func TestRoundsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	turns := 0
	c := newCase("tcp-1", 2, func(context.Context, *overlay, report.Seconds, report.Sample) (report.Sample, error) {
		if turns++; turns == 2 {
			cancel()
			return nil, errors.New("interrupted")
		}
		return report.Sample{"rate": 1}, nil
	})
	r := &run{plan: Plan{Rounds: 3}, progress: io.Discard, total: 3, result: &report.Result{}}
	if err := r.measureRounds(ctx, wire, c, []*overlay{{}}); !errors.Is(err, context.Canceled) ||
		len(r.result.Skipped) > 0 {
		t.Errorf("%v, skipped %v", err, r.result.Skipped)
	}
	if len(r.result.Series) != 1 || len(r.result.Series[0].Samples) != 1 {
		t.Errorf("series %+v, want one with the sample of the first round", r.result.Series)
	}
}

// routeTarget returns a target that routes without a tunnel and serves metrics on each node.
func routeTarget(t *testing.T, name string, page http.HandlerFunc) Target {
	return newTarget(name, "routes", func(_ context.Context, o *overlay) error {
		for _, n := range o.lab.Nodes {
			at := n.Management
			if !at.IsValid() {
				at = n.Addr
			}
			listener, err := n.Listen(at, benchHealth)
			if err != nil {
				return err
			}
			server := &http.Server{Handler: page}
			go server.Serve(listener)
			t.Cleanup(func() { _ = server.Close() })
		}
		o.detectMetrics()
		return o.connect(func(n *lab.Node, _ netip.Prefix,
			peers []lab.Peer) (int, error) {
			return n.RoutePeers(peers)
		})
	})
}

// Targets take turns with two nodes and with many. A target that fails on many nodes is skipped in
// that case only. Kernel features are recorded once.
func TestNetnsRunTurns(t *testing.T) {
	page := func(w http.ResponseWriter, _ *http.Request) {
		if _, err := io.WriteString(w, "weft_engine_feature{feature=\"x\"} 1\nweft_engine_feature{feature=\"y\"} 0\n"); err != nil {
			t.Error(err)
		}
	}
	turns := map[string][]string{}
	fake := func(name string, nodes int) Case {
		return newCase(name, nodes,
			func(_ context.Context, o *overlay, _ report.Seconds, _ report.Sample) (report.Sample, error) {
				if len(o.lab.Nodes) != nodes {
					t.Errorf("%s has %d nodes", name, len(o.lab.Nodes))
				}
				turns[name] = append(turns[name], o.target.Name)
				if name == "fan-out-64" && o.target.Name == "b" && len(turns[name]) > 2 {
					return nil, errors.New("broken")
				}
				return report.Sample{"rate": 1}, nil
			})
	}
	plan := Plan{Underlays: []report.Underlay{wire}, Rounds: 3,
		Cases:   []Case{fake("fan-out-64", 3), fake("tcp-1", 2), fake("fan-out-1400", 3)},
		Targets: []Target{routeTarget(t, "a", page), routeTarget(t, "b", page), Other("none", "/bin/false")}}
	var lines strings.Builder
	result, err := Run(t.Context(), plan, report.ReadHost("v", "c", nil), &lines)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"tcp-1": {"a", "b", "a", "b", "a", "b"}, "fan-out-64": {"a", "b", "a", "b", "a"},
		"fan-out-1400": {"a", "b", "a", "b", "a", "b"}}
	if !maps.EqualFunc(turns, want, slices.Equal) {
		t.Errorf("turns %v, want %v", turns, want)
	}
	var skipped []string
	for _, s := range result.Skipped {
		skipped = append(skipped, s.Case+" "+s.Target)
	}
	if want := []string{" none", "fan-out-64 none", "fan-out-1400 none", "fan-out-64 b"}; !slices.Equal(skipped, want) {
		t.Errorf("skipped %q, want %q", skipped, want)
	}
	if len(result.Series) != 5 || !strings.Contains(lines.String(), "100 %") {
		t.Errorf("%d series, want 5; %s", len(result.Series), lines.String())
	}
	features := func(target string) report.Features {
		return report.Features{Underlay: wire, Target: target, Used: []string{"x"}, Unused: []string{"y"}}
	}
	if want := []report.Features{features("a"), features("b")}; !reflect.DeepEqual(result.Features, want) {
		t.Errorf("features %+v, want %+v", result.Features, want)
	}
	if len(result.Host.Offloads["wire"]) == 0 {
		t.Error("no offloads of the underlay")
	}
}

// Samples taken before an interrupt stay, and the offloads are recorded.
func TestNetnsFanInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	turns := 0
	c := newCase("fan-out-64", 3,
		func(context.Context, *overlay, report.Seconds, report.Sample) (report.Sample, error) {
			if turns++; turns == 2 {
				cancel()
			}
			return report.Sample{"rate": 1}, ctx.Err()
		})
	plan := Plan{Underlays: []report.Underlay{wire}, Rounds: 3, Cases: []Case{c}, Targets: KernelTargets()[:1]}
	result, err := Run(ctx, plan, report.ReadHost("v", "c", nil), io.Discard)
	if !errors.Is(err, context.Canceled) || len(result.Skipped) > 0 {
		t.Errorf("%v, skipped %+v", err, result.Skipped)
	}
	if len(result.Series) != 1 || len(result.Series[0].Samples) != 1 || len(result.Host.Offloads["wire"]) == 0 {
		t.Errorf("series %+v, want one with one sample; offloads %v", result.Series, result.Host.Offloads)
	}
}

// After a daemon has exited, every measurement fails with the end of its log.
func TestNetnsDaemonExits(t *testing.T) {
	var p *lab.Process
	exiting := newTarget("exiting", "", func(ctx context.Context, o *overlay) error {
		if err := KernelTargets()[0].start(ctx, o); err != nil {
			return err
		}
		err := o.startDaemon(o.lab.Nodes[1], []string{"/bin/sh", "-c", "echo lease lost; exec sleep 1000"})
		if err != nil {
			return err
		}
		p = o.daemons[0]
		return lab.Await(ctx, 10*time.Second, "log", func() error {
			if p.Log() == "" {
				return errors.New("none")
			}
			return nil
		})
	})
	measured := 0
	silent := func(name string) Case {
		return newCase(name, 2, func(ctx context.Context, _ *overlay, _ report.Seconds,
			_ report.Sample) (report.Sample, error) {
			if measured++; measured == 2 {
				p.Kill()
				if _, err := p.Wait(ctx); err != nil {
					t.Error(err)
				}
			}
			return report.Sample{"rate": 0}, nil
		})
	}
	plan := Plan{Underlays: []report.Underlay{wire}, Rounds: 1, Targets: []Target{exiting},
		Cases: []Case{silent("tcp-1"), silent("udp-64-1"), silent("rtt-idle")}}
	result, err := Run(t.Context(), plan, report.ReadHost("v", "c", nil), io.Discard)
	if err != nil || len(result.Series) != 1 || len(result.Skipped) != 2 || measured != 2 {
		t.Errorf("%d series, skipped %+v, %d measurements, %v", len(result.Series), result.Skipped, measured, err)
	}
	for _, s := range result.Skipped {
		if !strings.Contains(s.Reason, "node2: the daemon exited: ") || !strings.Contains(s.Reason, "lease lost") {
			t.Errorf("%s: skipped because %q", s.Case, s.Reason)
		}
	}
}
