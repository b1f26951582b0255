package bench

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
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
	r := &run{plan: Plan{Rounds: 3}, out: io.Discard, total: 9, result: &Result{}}
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
}

func TestRoundsEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := Case{Name: "tcp-1", Headlines: []string{"rate"}, run: func(context.Context, *overlay, Seconds, Figures) (Figures, error) {
		cancel()
		return nil, errors.New("interrupted")
	}}
	r := &run{plan: Plan{Rounds: 3}, out: io.Discard, total: 3, result: &Result{}}
	if err := r.rounds(ctx, wire, c, []*overlay{{}}); !errors.Is(err, context.Canceled) || len(r.result.Skipped) > 0 {
		t.Errorf("%v, left out %v", err, r.result.Skipped)
	}
}
