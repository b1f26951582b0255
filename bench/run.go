package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"weft/bench/lab"
)

// Plan is what to measure.
type Plan struct {
	Environments []Environment
	Cases        []Case
	Rivals       []Rival
	Rounds       int
	Seconds      Seconds
}

// Run measures everything in the plan: in each environment, for each case, all rivals in turn, and that again for every
// round. It writes a line for each measurement to progress. It is to be called inside a lab.
//
// A rival that cannot be started, or fails a measurement, is left out from there on and the result says why; the error
// is about the rest, or says that nothing at all could be measured.
func Run(ctx context.Context, p Plan, facts Facts, progress io.Writer) (*Result, error) {
	r := &run{plan: p, out: progress, start: time.Now(), result: &Result{Schema: schema, Facts: facts, Rounds: p.Rounds, Seconds: p.Seconds, Rivals: p.Rivals}}
	r.total = len(p.Environments) * len(p.Cases) * len(p.Rivals) * p.Rounds
	for _, e := range p.Environments {
		for _, nodes := range []int{2, fanNodes} {
			cases := slices.DeleteFunc(slices.Clone(p.Cases), func(c Case) bool { return c.Nodes != nodes })
			if len(cases) == 0 {
				continue
			}
			if err := r.environment(ctx, e, cases); err != nil {
				return r.result, err
			}
		}
	}
	if len(r.result.Series) == 0 {
		return r.result, errors.New("nothing could be measured")
	}
	return r.result, nil
}

// run is a run under way.
type run struct {
	plan        Plan
	out         io.Writer
	start       time.Time
	done, total int
	result      *Result
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.out, "%6.0fs  %s\n", time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

// environment measures cases that need the same nodes.
func (r *run) environment(ctx context.Context, e Environment, cases []Case) (err error) {
	if cases[0].Nodes > 2 {
		return r.fan(ctx, e, cases)
	}
	var overlays []*overlay
	defer func() {
		for _, o := range overlays {
			err = errors.Join(err, o.close())
		}
	}()
	for i, rival := range r.plan.Rivals {
		o, err := begin(ctx, rival, lab.Options{Name: string(rune('a'+i)) + "-", Direct: true, Mode: e.Mode, MTU: e.MTU,
			Management: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 254, byte(i), 0}), 24)})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.skip(e, "", rival.Name, err, len(cases)*r.plan.Rounds)
			continue
		}
		r.say("%s: %s is up", e, rival.Name)
		overlays = append(overlays, o)
	}
	if err := r.underlay(e, overlays); err != nil {
		return err
	}
	for _, c := range cases {
		if err := r.rounds(ctx, e, c, overlays); err != nil {
			return err
		}
	}
	r.abilities(e, overlays)
	return nil
}

// fan measures cases with many nodes: too many to have those of all rivals at once.
func (r *run) fan(ctx context.Context, e Environment, cases []Case) error {
	for _, rival := range r.plan.Rivals {
		r.say("%s: %s on %d nodes...", e, rival.Name, fanNodes)
		o, err := begin(ctx, rival, lab.Options{Nodes: fanNodes, Mode: e.Mode, MTU: e.MTU})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.skip(e, cases[0].Name, rival.Name, err, len(cases)*r.plan.Rounds)
			continue
		}
		for _, c := range cases {
			if err = r.rounds(ctx, e, c, []*overlay{o}); err != nil {
				break
			}
		}
		if err := errors.Join(err, o.close()); err != nil {
			return err
		}
	}
	return nil
}

// underlay notes what the underlay devices do to frames.
func (r *run) underlay(e Environment, overlays []*overlay) error {
	if len(overlays) == 0 {
		return nil
	}
	features, err := overlays[0].lab.Nodes[0].Features("eth0")
	if err != nil {
		return err
	}
	var on []string
	for name, set := range features {
		if set {
			on = append(on, name)
		}
	}
	slices.Sort(on)
	r.result.Facts.Underlay[string(e.Mode)] = on
	return nil
}

// rounds measures one case: every overlay once, and that for every round.
func (r *run) rounds(ctx context.Context, e Environment, c Case, overlays []*overlay) error {
	series := make([]*Series, len(overlays))
	dead := make([]bool, len(overlays))
	for i, o := range overlays {
		series[i] = &Series{Environment: e, Case: c.Name, Rival: o.rival.Name}
	}
	for round := range r.plan.Rounds {
		for i, o := range overlays {
			if dead[i] {
				continue
			}
			var before Figures
			if round > 0 {
				before = Figures{"rate": series[i].spread("rate").Median}
			}
			f, err := c.run(ctx, o, r.plan.Seconds, before)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				dead[i] = true
				r.skip(e, c.Name, o.rival.Name, err, r.plan.Rounds-round)
				continue
			}
			series[i].Samples = append(series[i].Samples, f)
			r.done++
			head := figureInfo(c.Headlines[0])
			r.say("%3.0f %%  %s  %-13s round %d  %-22s %s %s", 100*float64(r.done)/float64(r.total), e, c.Name, round+1,
				o.rival.Name, number(f[head.Name]/head.Scale), head.Unit)
		}
	}
	for i, s := range series {
		if len(s.Samples) > 0 && !dead[i] {
			r.result.Series = append(r.result.Series, *s)
		}
	}
	return nil
}

// skip notes what is left out, with the measurements that it saves.
func (r *run) skip(e Environment, name, rival string, why error, measurements int) {
	r.total -= measurements
	r.result.Skipped = append(r.result.Skipped, Skip{e.String(), name, rival, why.Error()})
	r.say("%s  %s: left out: %v", e, rival, why)
}

// abilities notes what our daemons used of the kernel.
func (r *run) abilities(e Environment, overlays []*overlay) {
	for _, o := range overlays {
		m := o.metrics(o.lab.Nodes[0])
		if m == nil {
			continue
		}
		used, unused := m.Capabilities()
		r.result.Abilities = append(r.result.Abilities, Abilities{e, o.rival.Name, used, unused})
	}
}

// AbilityNames asks a daemon which abilities of the kernel it knows, by running it in a lab for a moment.
func AbilityNames(ctx context.Context, weftd string) ([]string, error) {
	o, err := begin(ctx, Weftd("probe", "", weftd), lab.Options{Name: "p-", Direct: true, Management: netip.MustParsePrefix("10.254.255.0/24")})
	if err != nil {
		return nil, err
	}
	m := o.metrics(o.lab.Nodes[0])
	used, _ := m.Capabilities()
	return used, o.close()
}
