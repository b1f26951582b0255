package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft/deploy/lab"
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
// A rival that cannot be started is left out, one that fails a measurement is left out of that case, and one whose daemon
// has ended of the following ones too; the result says why. The error is about the rest, or says that nothing at all
// could be measured; the result holds what was measured until then.
func Run(ctx context.Context, p Plan, facts Facts, progress io.Writer) (*Result, error) {
	r := &run{plan: p, out: progress, start: time.Now(), result: &Result{Schema: schema, Facts: facts, Rounds: p.Rounds, Seconds: p.Seconds, Rivals: p.Rivals}}
	r.total = len(p.Environments) * len(p.Cases) * len(p.Rivals) * p.Rounds
	byNodes := map[int][]Case{}
	for _, c := range p.Cases {
		byNodes[c.Nodes] = append(byNodes[c.Nodes], c)
	}
	for _, e := range p.Environments {
		for _, nodes := range slices.Sorted(maps.Keys(byNodes)) {
			measure := r.pairs
			if nodes > 2 {
				measure = r.fans
			}
			if err := measure(ctx, e, byNodes[nodes]); err != nil {
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

// pairs measures cases of two nodes, which all rivals have at once.
func (r *run) pairs(ctx context.Context, e Environment, cases []Case) (err error) {
	var overlays []*overlay
	defer func() {
		for _, o := range overlays {
			err = errors.Join(err, r.finish(e, o))
		}
	}()
	for i, rival := range r.plan.Rivals {
		o, err := begin(ctx, rival, lab.Options{NamePrefix: string(rune('a'+i)) + "-", Direct: true, Mode: e.Mode, MTU: e.MTU,
			Management: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 254, byte(i), 0}), 24)})
		switch {
		case err == nil:
			r.say("%s: %s is up", e, rival.Name)
			overlays = append(overlays, o)
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			r.skip(e, "", rival.Name, err, len(cases)*r.plan.Rounds)
		}
	}
	for _, c := range cases {
		if err := r.rounds(ctx, e, c, overlays); err != nil {
			return err
		}
	}
	return nil
}

// rounds measures one case: every overlay once, and that for every round.
func (r *run) rounds(ctx context.Context, e Environment, c Case, overlays []*overlay) error {
	for range r.plan.Rounds {
		for _, o := range overlays {
			if err := r.measure(ctx, e, c, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// fans measures cases of many nodes: too many for all rivals to have them at once, so they are built anew for each turn.
func (r *run) fans(ctx context.Context, e Environment, cases []Case) error {
	for range r.plan.Rounds {
		for _, rival := range r.plan.Rivals {
			if err := r.turn(ctx, e, cases, rival); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn measures a rival once in each case of many nodes.
func (r *run) turn(ctx context.Context, e Environment, cases []Case, rival Rival) (err error) {
	cases = slices.DeleteFunc(slices.Clone(cases), func(c Case) bool { return r.leftOut(e, c.Name, rival.Name) })
	if len(cases) == 0 {
		return nil
	}
	r.say("%s: %s on %d nodes...", e, rival.Name, cases[0].Nodes)
	o, err := begin(ctx, rival, lab.Options{Nodes: cases[0].Nodes, Mode: e.Mode, MTU: e.MTU})
	if err != nil {
		for _, c := range cases {
			if ctx.Err() == nil {
				r.leaveOut(e, c.Name, rival.Name, err)
			}
		}
		return ctx.Err()
	}
	defer func() { err = errors.Join(err, r.finish(e, o)) }()
	for _, c := range cases {
		if err := r.measure(ctx, e, c, o); err != nil {
			return err
		}
	}
	return nil
}

// measure takes one sample of a case, unless the rival is left out of it.
func (r *run) measure(ctx context.Context, e Environment, c Case, o *overlay) error {
	rival := o.rival.Name
	if r.leftOut(e, c.Name, rival) {
		return nil
	}
	before := Figures{"rate": r.result.find(e, c.Name, rival).spread("rate").Median}
	f, err := o.measure(ctx, c, r.plan.Seconds, before)
	if err != nil {
		if ctx.Err() == nil {
			r.leaveOut(e, c.Name, rival, err)
		}
		return ctx.Err()
	}
	if r.result.find(e, c.Name, rival) == nil {
		r.result.Series = append(r.result.Series, Series{Environment: e, Case: c.Name, Rival: rival})
	}
	s := r.result.find(e, c.Name, rival)
	s.Samples = append(s.Samples, f)
	r.done++
	head := figureInfo(c.Headlines[0])
	r.say("%3.0f %%  %s  %-13s round %d  %-22s %s %s", 100*float64(r.done)/float64(r.total), e, c.Name, len(s.Samples),
		rival, number(f[head.Name]/head.Scale), head.Unit)
	return nil
}

// leaveOut ends a rival's part in a case, and drops the samples that it has: a series has one for each round.
func (r *run) leaveOut(e Environment, name, rival string, why error) {
	left := r.plan.Rounds
	r.result.Series = slices.DeleteFunc(r.result.Series, func(s Series) bool {
		if s.Environment != e || s.Case != name || s.Rival != rival {
			return false
		}
		left -= len(s.Samples)
		return true
	})
	r.skip(e, name, rival, why, left)
}

func (r *run) leftOut(e Environment, name, rival string) bool {
	return slices.ContainsFunc(r.result.Skipped, func(s Skip) bool {
		return s.Environment == e.String() && s.Case == name && s.Rival == rival
	})
}

// skip notes what is left out, with the measurements that it saves. No name stands for all cases.
func (r *run) skip(e Environment, name, rival string, why error, measurements int) {
	r.total -= measurements
	r.result.Skipped = append(r.result.Skipped, Skip{e.String(), name, rival, why.Error()})
	what := rival
	if name != "" {
		what = name + "  " + rival
	}
	r.say("%s  %s: left out: %v", e, what, why)
}

// finish notes what an overlay had of the kernel, and ends it.
func (r *run) finish(e Environment, o *overlay) error {
	r.abilities(e, o)
	return errors.Join(r.underlay(e, o), o.close())
}

// underlay notes what the underlay devices do to frames.
func (r *run) underlay(e Environment, o *overlay) error {
	features, err := o.lab.Nodes[0].Features("eth0")
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

// abilities notes what our daemons used of the kernel, once for each environment.
func (r *run) abilities(e Environment, o *overlay) {
	if slices.ContainsFunc(r.result.Abilities, func(a Abilities) bool { return a.Environment == e && a.Rival == o.rival.Name }) {
		return
	}
	m, err := o.metrics(o.lab.Nodes[0])
	if err != nil || m == nil {
		return // of a daemon that has ended nothing is known
	}
	used, unused := m.Capabilities()
	r.result.Abilities = append(r.result.Abilities, Abilities{e, o.rival.Name, used, unused})
}

// AbilityNames asks a daemon which abilities of the kernel it uses, by running it in a lab for a moment.
func AbilityNames(ctx context.Context, weftd string) ([]string, error) {
	o, err := begin(ctx, Weftd("probe", "", weftd), lab.Options{NamePrefix: "p-", Direct: true, Management: netip.MustParsePrefix("10.254.255.0/24")})
	if err != nil {
		return nil, err
	}
	names, err := o.abilityNames()
	return names, errors.Join(err, o.close())
}

func (o *overlay) abilityNames() ([]string, error) {
	m, err := o.metrics(o.lab.Nodes[0])
	if err == nil && m == nil {
		err = errors.New("the daemon does not tell its abilities: it has no page of metrics")
	}
	used, _ := m.Capabilities()
	return used, err
}
