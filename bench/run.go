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

	"weft/bench/report"
	"weft/deploy/lab"
)

// Plan selects the measurements of a run.
type Plan struct {
	Underlays []report.Underlay
	Cases     []Case
	Targets   []Target
	Rounds    int
	Seconds   report.Seconds
}

// Run measures every target in every case and underlay, in rounds in which all targets take turns.
// It writes a line per measurement to progress. It must be called inside a lab.
//
// A target that cannot be started is skipped, one that fails a measurement is skipped in that case,
// and one whose daemon has exited in the following cases too; the result holds the reasons. Run
// returns an error if it was interrupted or nothing could be measured; the result then holds the
// samples taken so far.
func Run(ctx context.Context, p Plan, host report.Host,
	progress io.Writer) (*report.Result, error) {
	r := &run{plan: p, progress: progress, start: time.Now(), result: &report.Result{
		Schema: report.Schema, Host: host, Rounds: p.Rounds, Seconds: p.Seconds}}
	for _, t := range p.Targets {
		r.result.Targets = append(r.result.Targets, t.Target)
	}
	r.total = len(p.Underlays) * len(p.Cases) * len(p.Targets) * p.Rounds
	byNodes := map[int][]Case{}
	for _, c := range p.Cases {
		byNodes[c.Nodes] = append(byNodes[c.Nodes], c)
	}
	for _, u := range p.Underlays {
		for _, nodes := range slices.Sorted(maps.Keys(byNodes)) {
			measure := r.measurePairs
			if nodes > pairNodes {
				measure = r.measureFans
			}
			if err := measure(ctx, u, byNodes[nodes]); err != nil {
				return r.result, err
			}
		}
	}
	if len(r.result.Series) == 0 {
		return r.result, errors.New("nothing could be measured")
	}
	return r.result, nil
}

// run is the state of a call of [Run].
type run struct {
	plan        Plan
	progress    io.Writer
	start       time.Time
	done, total int // measurements
	result      *report.Result
}

func (r *run) log(format string, args ...any) {
	fmt.Fprintf(r.progress, "%6.0fs  %s\n", time.Since(r.start).Seconds(),
		fmt.Sprintf(format, args...))
}

// measurePairs measures cases of two nodes. The overlays of all targets exist at the same time.
func (r *run) measurePairs(ctx context.Context, u report.Underlay, cases []Case) (err error) {
	var overlays []*overlay
	defer func() {
		for _, o := range overlays {
			err = errors.Join(err, r.finish(u, o))
		}
	}()
	for i, target := range r.plan.Targets {
		o, err := start(ctx, target, lab.Options{
			NamePrefix: string(rune('a'+i)) + "-", Direct: true, Mode: lab.Mode(u.Mode), MTU: u.MTU,
			Management: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 254, byte(i), 0}), 24)})
		switch {
		case err == nil:
			r.log("%s: %s is up", u, target.Name)
			overlays = append(overlays, o)
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			r.skip(u, "", target.Name, err, len(cases)*r.plan.Rounds)
		}
	}
	for _, c := range cases {
		if err := r.measureRounds(ctx, u, c, overlays); err != nil {
			return err
		}
	}
	return nil
}

// measureRounds measures one case: every overlay once per round.
func (r *run) measureRounds(ctx context.Context, u report.Underlay, c Case,
	overlays []*overlay) error {
	for range r.plan.Rounds {
		for _, o := range overlays {
			if err := r.measure(ctx, u, c, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureFans measures cases of many nodes. The overlays of all targets would be too many nodes at
// the same time, so each is created for its turn.
func (r *run) measureFans(ctx context.Context, u report.Underlay, cases []Case) error {
	for range r.plan.Rounds {
		for _, target := range r.plan.Targets {
			if err := r.measureFan(ctx, u, cases, target); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureFan measures a target once in each case of many nodes.
func (r *run) measureFan(ctx context.Context, u report.Underlay, cases []Case,
	target Target) (err error) {
	cases = slices.DeleteFunc(slices.Clone(cases),
		func(c Case) bool { return r.skipped(u, c.Name, target.Name) })
	if len(cases) == 0 {
		return nil
	}
	r.log("%s: %s on %d nodes...", u, target.Name, cases[0].Nodes)
	o, err := start(ctx, target, lab.Options{Nodes: cases[0].Nodes, Mode: lab.Mode(u.Mode),
		MTU: u.MTU})
	if err != nil {
		for _, c := range cases {
			if ctx.Err() == nil {
				r.dropSeries(u, c.Name, target.Name, err)
			}
		}
		return ctx.Err()
	}
	defer func() { err = errors.Join(err, r.finish(u, o)) }()
	for _, c := range cases {
		if err := r.measure(ctx, u, c, o); err != nil {
			return err
		}
	}
	return nil
}

// measure takes one sample of a case, unless the target is skipped in it.
func (r *run) measure(ctx context.Context, u report.Underlay, c Case, o *overlay) error {
	target := o.target.Name
	if r.skipped(u, c.Name, target) {
		return nil
	}
	previous := report.Sample{"rate": r.result.Find(u, c.Name, target).Spread("rate").Median}
	sample, err := o.measure(ctx, c, r.plan.Seconds, previous)
	if err != nil {
		if ctx.Err() == nil {
			r.dropSeries(u, c.Name, target, err)
		}
		return ctx.Err()
	}
	if r.result.Find(u, c.Name, target) == nil {
		r.result.Series = append(r.result.Series,
			report.Series{Underlay: u, Case: c.Name, Target: target})
	}
	s := r.result.Find(u, c.Name, target)
	s.Samples = append(s.Samples, sample)
	r.done++
	m := report.MetricByName(c.Headlines[0])
	r.log("%3.0f %%  %s  %-15s round %d  %-22s %s %s", 100*float64(r.done)/float64(r.total), u,
		c.Name,
		len(s.Samples), target, m.Format(sample[m.Name]), m.Unit)
	return nil
}

// dropSeries skips a target in a case and drops its samples: a series has one sample per round.
func (r *run) dropSeries(u report.Underlay, name, target string, reason error) {
	left := r.plan.Rounds
	r.result.Series = slices.DeleteFunc(r.result.Series, func(s report.Series) bool {
		if s.Underlay != u || s.Case != name || s.Target != target {
			return false
		}
		left -= len(s.Samples)
		return true
	})
	r.skip(u, name, target, reason, left)
}

func (r *run) skipped(u report.Underlay, name, target string) bool {
	return slices.ContainsFunc(r.result.Skipped, func(s report.Skip) bool {
		return s.Underlay == u && s.Case == name && s.Target == target
	})
}

// skip records a target that is skipped in a case, and the number of measurements that are not
// taken. An empty name stands for all cases.
func (r *run) skip(u report.Underlay, name, target string, reason error, measurements int) {
	r.total -= measurements
	r.result.Skipped = append(r.result.Skipped,
		report.Skip{Underlay: u, Case: name, Target: target, Reason: reason.Error()})
	subject := target
	if name != "" {
		subject = name + "  " + target
	}
	r.log("%s  %s: skipped: %v", u, subject, reason)
}

// finish records the kernel features and offloads that an overlay used, and closes it.
func (r *run) finish(u report.Underlay, o *overlay) error {
	r.recordFeatures(u, o)
	return errors.Join(r.recordOffloads(u, o), o.close())
}

// recordOffloads records the offload features of the underlay devices.
func (r *run) recordOffloads(u report.Underlay, o *overlay) error {
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
	r.result.Host.Offloads[u.Mode] = on
	return nil
}

// recordFeatures records the kernel features that weftd used, once per underlay.
func (r *run) recordFeatures(u report.Underlay, o *overlay) {
	recorded := func(f report.Features) bool { return f.Underlay == u && f.Target == o.target.Name }
	if slices.ContainsFunc(r.result.Features, recorded) {
		return
	}
	m, err := o.scrape(o.lab.Nodes[0])
	if err != nil || m == nil {
		return // the daemon has exited
	}
	used, unused := m.Features()
	r.result.Features = append(r.result.Features,
		report.Features{Underlay: u, Target: o.target.Name, Used: used, Unused: unused})
}

// UsedFeatures returns the kernel features that a weftd uses, by running it in a lab for a moment.
func UsedFeatures(ctx context.Context, weftd string) ([]string, error) {
	o, err := start(ctx, Weftd("probe", "", weftd), lab.Options{NamePrefix: "p-", Direct: true,
		Management: netip.MustParsePrefix("10.254.255.0/24")})
	if err != nil {
		return nil, err
	}
	names, err := o.usedFeatures()
	return names, errors.Join(err, o.close())
}

func (o *overlay) usedFeatures() ([]string, error) {
	m, err := o.scrape(o.lab.Nodes[0])
	if err == nil && m == nil {
		err = errors.New("read kernel features: the daemon serves no metrics")
	}
	used, _ := m.Features()
	return used, err
}
