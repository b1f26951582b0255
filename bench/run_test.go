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

	"weft/deploy/lab"
)

// Rivals take turns, one that fails has no further turn and no series, and a round knows what the ones before it found.
func TestRounds(t *testing.T) {
	var turns []string
	c := Case{Name: "tcp-1", Headlines: []string{"rate"}, Nodes: 2,
		run: func(_ context.Context, o *overlay, _ Seconds, before Figures) (Figures, error) {
			turns = append(turns, o.rival.Name)
			if o.rival.Name == "b" && len(turns) > 3 {
				return nil, errors.New("broken")
			}
			return Figures{"rate": before["rate"] + 1}, nil
		}}
	var lines strings.Builder
	r := &run{plan: Plan{Rounds: 3}, out: &lines, total: 9, result: &Result{}}
	overlays := []*overlay{{rival: Rival{Name: "a"}}, {rival: Rival{Name: "b"}}, {rival: Rival{Name: "c"}}}
	if err := r.rounds(t.Context(), wire, c, overlays); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "c", "a", "b", "c", "a", "c"}; !slices.Equal(turns, want) {
		t.Errorf("turns %v, want %v", turns, want)
	}
	if len(r.result.Series) != 2 || r.result.find(wire, "tcp-1", "b") != nil {
		t.Errorf("series %+v, want those of a and c", r.result.Series)
	}
	if got := r.result.find(wire, "tcp-1", "c").values("rate"); !slices.Equal(got, []float64{1, 2, 2.5}) {
		t.Errorf("rates %v: each round starts from the median of those before", got)
	}
	if skipped := r.result.Skipped; len(skipped) != 1 || skipped[0] != (Skip{"wire 1500", "tcp-1", "b", "broken"}) {
		t.Errorf("left out %+v", skipped)
	}
	if r.done != r.total {
		t.Errorf("%d of %d measurements at the end", r.done, r.total)
	}
	r.skip(wire, "", "d", errors.New("no driver"), 0)
	for _, want := range []string{"  wire 1500  tcp-1  b: left out: broken\n", "  wire 1500  d: left out: no driver\n"} {
		if !strings.Contains(lines.String(), want) {
			t.Errorf("want %q in:\n%s", want, lines.String())
		}
	}
}

// An interrupted measurement is nobody's fault, and what was measured before it stays.
func TestRoundsEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	turns := 0
	c := Case{Name: "tcp-1", Headlines: []string{"rate"}, run: func(context.Context, *overlay, Seconds, Figures) (Figures, error) {
		if turns++; turns == 2 {
			cancel()
			return nil, errors.New("interrupted")
		}
		return Figures{"rate": 1}, nil
	}}
	r := &run{plan: Plan{Rounds: 3}, out: io.Discard, total: 3, result: &Result{}}
	if err := r.rounds(ctx, wire, c, []*overlay{{}}); !errors.Is(err, context.Canceled) || len(r.result.Skipped) > 0 {
		t.Errorf("%v, left out %v", err, r.result.Skipped)
	}
	if len(r.result.Series) != 1 || len(r.result.Series[0].Samples) != 1 {
		t.Errorf("series %+v, want one with the sample of the first round", r.result.Series)
	}
}

// routed is a rival that routes, and serves a page of metrics on each node.
func routed(t *testing.T, name string, page http.HandlerFunc) Rival {
	return Rival{name, "routes", func(_ context.Context, o *overlay) error {
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
		o.meter()
		return o.join(func(n *lab.Node, _ netip.Prefix, peers []lab.Peer) (int, error) { return n.RoutePeers(peers) })
	}}
}

// Rounds interleave whether all rivals have their nodes at once or, with many, each anew. One that fails on many nodes is
// out of that case alone, and what was used of the kernel is noted once.
func TestNetnsRunTakesTurns(t *testing.T) {
	page := func(w http.ResponseWriter, _ *http.Request) {
		if _, err := io.WriteString(w, "weft_engine_feature{feature=\"x\"} 1\nweft_engine_capability{capability=\"y\"} 0\n"); err != nil {
			t.Error(err)
		}
	}
	turns := map[string][]string{}
	fake := func(name string, nodes int) Case {
		return Case{Name: name, Headlines: []string{"rate"}, Nodes: nodes,
			run: func(_ context.Context, o *overlay, _ Seconds, _ Figures) (Figures, error) {
				if len(o.lab.Nodes) != nodes {
					t.Errorf("%s has %d nodes", name, len(o.lab.Nodes))
				}
				turns[name] = append(turns[name], o.rival.Name)
				if name == "fan-out-64" && o.rival.Name == "b" && len(turns[name]) > 2 {
					return nil, errors.New("broken")
				}
				return Figures{"rate": 1}, nil
			}}
	}
	plan := Plan{Environments: []Environment{wire}, Rounds: 3,
		Cases:  []Case{fake("fan-out-64", 3), fake("tcp-1", 2), fake("fan-out-1400", 3)},
		Rivals: []Rival{routed(t, "a", page), routed(t, "b", page), Other("none", "/bin/false")}}
	var lines strings.Builder
	result, err := Run(t.Context(), plan, GatherFacts("v", "c", nil), &lines)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"tcp-1": {"a", "b", "a", "b", "a", "b"}, "fan-out-64": {"a", "b", "a", "b", "a"}, "fan-out-1400": {"a", "b", "a", "b", "a", "b"}}
	if !maps.EqualFunc(turns, want, slices.Equal) {
		t.Errorf("turns %v, want %v", turns, want)
	}
	var skipped []string
	for _, s := range result.Skipped {
		skipped = append(skipped, s.Case+" "+s.Rival)
	}
	if want := []string{" none", "fan-out-64 none", "fan-out-1400 none", "fan-out-64 b"}; !slices.Equal(skipped, want) {
		t.Errorf("left out %q, want %q", skipped, want)
	}
	if len(result.Series) != 5 || !strings.Contains(lines.String(), "100 %") {
		t.Errorf("%d series, want 5; %s", len(result.Series), lines.String())
	}
	if want := []Abilities{{wire, "a", []string{"x"}, []string{"y"}}, {wire, "b", []string{"x"}, []string{"y"}}}; !reflect.DeepEqual(result.Abilities, want) {
		t.Errorf("abilities %+v, want %+v", result.Abilities, want)
	}
	if len(result.Facts.Underlay["wire"]) == 0 {
		t.Error("no features of the underlay")
	}
}

// What many nodes were measured at before an interrupt stays, and the underlay is noted.
func TestNetnsInterruptedFan(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	turns := 0
	c := Case{Name: "fan-out-64", Headlines: []string{"rate"}, Nodes: 3,
		run: func(context.Context, *overlay, Seconds, Figures) (Figures, error) {
			if turns++; turns == 2 {
				cancel()
			}
			return Figures{"rate": 1}, ctx.Err()
		}}
	plan := Plan{Environments: []Environment{wire}, Rounds: 3, Cases: []Case{c}, Rivals: KernelRivals()[:1]}
	result, err := Run(ctx, plan, GatherFacts("v", "c", nil), io.Discard)
	if !errors.Is(err, context.Canceled) || len(result.Skipped) > 0 {
		t.Errorf("%v, left out %+v", err, result.Skipped)
	}
	if len(result.Series) != 1 || len(result.Series[0].Samples) != 1 || len(result.Facts.Underlay["wire"]) == 0 {
		t.Errorf("series %+v, want one with one sample; underlay %v", result.Series, result.Facts.Underlay)
	}
}

// A daemon that ends is the result of every measurement from then on, with its last words, whatever arrived.
func TestNetnsDaemonEnds(t *testing.T) {
	var p *lab.Process
	dying := Rival{"dying", "", func(ctx context.Context, o *overlay) error {
		if err := KernelRivals()[0].start(ctx, o); err != nil {
			return err
		}
		err := o.startDaemon(o.lab.Nodes[1], []string{"/bin/sh", "-c", "echo the dog ate it; exec sleep 1000"})
		if err != nil {
			return err
		}
		p = o.daemons[0]
		return lab.Await(ctx, 10*time.Second, "first words", func() error {
			if p.Log() == "" {
				return errors.New("none")
			}
			return nil
		})
	}}
	measured := 0
	silent := func(name string) Case {
		return Case{Name: name, Headlines: []string{"rate"}, Nodes: 2, run: func(ctx context.Context, _ *overlay, _ Seconds, _ Figures) (Figures, error) {
			if measured++; measured == 2 {
				p.Kill()
				if _, err := p.Wait(ctx); err != nil {
					t.Error(err)
				}
			}
			return Figures{"rate": 0}, nil
		}}
	}
	plan := Plan{Environments: []Environment{wire}, Rounds: 1, Rivals: []Rival{dying},
		Cases: []Case{silent("tcp-1"), silent("udp-64-1"), silent("rtt-idle")}}
	result, err := Run(t.Context(), plan, GatherFacts("v", "c", nil), io.Discard)
	if err != nil || len(result.Series) != 1 || len(result.Skipped) != 2 || measured != 2 {
		t.Errorf("%d series, left out %+v, %d measurements, %v", len(result.Series), result.Skipped, measured, err)
	}
	for _, s := range result.Skipped {
		if !strings.Contains(s.Why, "node2: the daemon has ended: ") || !strings.Contains(s.Why, "the dog ate it") {
			t.Errorf("%s: left out because %q", s.Case, s.Why)
		}
	}
}
