package report

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// minChange is the smallest relative change that is reported.
const minChange = 0.03

// Change is a metric of one target in two results.
type Change struct {
	Underlay             Underlay
	Case, Target, Metric string
	Before, After        Spread
	// Reference is the target that Before and After are ratios to; ratios cancel out the speed of
	// the machine. It is empty, and the values are absolute, if a result has no such ratio, and for
	// the reference itself.
	Reference string
}

// Factor returns after over before; it is infinite if before is 0.
func (c Change) Factor() float64 { return c.After.Median / c.Before.Median }

// Changed reports whether all rounds of each result are outside the other's range, and the change
// is not negligible.
func (c Change) Changed() bool {
	outside := c.After.Min > c.Before.Max || c.After.Max < c.Before.Min
	return outside && math.Abs(c.Factor()-1) >= minChange
}

// Better reports whether the change is an improvement.
func (c Change) Better() bool { return (c.Factor() > 1) != MetricByName(c.Metric).LowerBetter }

// Changes compares every headline metric that both results have.
func Changes(before, after *Result) []Change {
	var list []Change
	for _, u := range after.underlays() {
		reference := after.referenceIn(u)
		for _, c := range after.cases(u) {
			for _, target := range after.targetsIn(u) {
				for _, metric := range c.Headlines {
					change := Change{Underlay: u, Case: c.Name, Target: target, Metric: metric}
					change.fill(before, after, reference)
					if change.Before.N > 0 && change.After.N > 0 {
						list = append(list, change)
					}
				}
			}
		}
	}
	return list
}

// fill sets the values: ratios if both results have them, else absolute values.
func (c *Change) fill(before, after *Result, reference string) {
	a, b := before.Find(c.Underlay, c.Case, c.Target), after.Find(c.Underlay, c.Case, c.Target)
	c.Reference = reference
	c.Before = a.ratio(before.Find(c.Underlay, c.Case, reference), c.Metric)
	c.After = b.ratio(after.Find(c.Underlay, c.Case, reference), c.Metric)
	if c.Before.N == 0 || c.After.N == 0 || c.Target == reference {
		c.Before, c.After, c.Reference = a.Spread(c.Metric), b.Spread(c.Metric), ""
	}
}

// Compare writes how the conditions of two runs differ, the headline metrics that changed, and how
// many did not.
func Compare(w io.Writer, before, after *Result) error {
	b := bufio.NewWriter(w)
	for _, d := range differences(before, after) {
		fmt.Fprintln(b, "differs:", d)
	}
	for _, x := range []struct {
		name        string
		this, other *Result
	}{{"first", before, after}, {"second", after, before}} {
		if x.this.Incomplete != "" {
			fmt.Fprintf(b, "the %s run ended early: %s\n", x.name, x.this.Incomplete)
		}
		if n := x.this.missingFrom(x.other); n > 0 {
			fmt.Fprintf(b, "only in the %s result: %d of %d series\n", x.name, n,
				len(x.this.Series))
		}
	}
	changes := Changes(before, after)
	if len(changes) == 0 {
		fmt.Fprintln(b, "the two results have no measurement in common")
		return b.Flush()
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	changed := 0
	for _, c := range changes {
		if c.Changed() {
			c.write(t)
			changed++
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(b, "%d of %d metrics changed: all rounds are outside the other result's range\n",
		changed, len(changes))
	return b.Flush()
}

// missingFrom returns the number of series that another result does not have.
func (r *Result) missingFrom(other *Result) int {
	n := 0
	for _, s := range r.Series {
		if other.Find(s.Underlay, s.Case, s.Target) == nil {
			n++
		}
	}
	return n
}

// write writes the change as a table row.
func (c Change) write(w io.Writer) {
	verdict := "worse"
	if c.Better() {
		verdict = "better"
	}
	m := MetricByName(c.Metric)
	title := m.Title
	if c.Reference != "" {
		m.Scale, m.Unit = 1, "x "+c.Reference
	}
	amount := fmt.Sprintf("%+.0f %%", 100*(c.Factor()-1))
	if c.Before.Median == 0 {
		amount = "from 0"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s %s\t%s -> %s %s\t(%s to %s -> %s to %s)\t%s\n", verdict,
		c.Underlay, c.Target, c.Case,
		title, m.Format(c.Before.Median), m.Format(c.After.Median), m.Unit, m.Format(c.Before.Min), m.Format(c.Before.Max),
		m.Format(c.After.Min), m.Format(c.After.Max), amount)
}

// differences lists the conditions that make absolute values hard to compare.
func differences(before, after *Result) []string {
	var list []string
	a, b := before.Host, after.Host
	seconds := func(r *Result) string {
		return fmt.Sprintf("%v and %v", r.Seconds.Measure, r.Seconds.Probe)
	}
	for _, f := range []struct{ name, before, after string }{
		{"kernel", a.Kernel, b.Kernel}, {"CPU", a.CPU, b.CPU}, {"architecture", a.Arch, b.Arch},
		{"number of CPUs", fmt.Sprint(a.CPUs), fmt.Sprint(b.CPUs)},
		{"virtual", fmt.Sprint(a.Hypervisor), fmt.Sprint(b.Hypervisor)},
		{"governor", a.Governor, b.Governor}, {"idle CPUs", a.Idle, b.Idle}, {"load at the start", a.Load, b.Load},
		{"privileges", a.Privileges, b.Privileges},
		{"TCP congestion control", a.Congestion, b.Congestion},
		{"Go", a.Go, b.Go}, {"commit", a.Commit, b.Commit},
		{"arguments", strings.Join(a.Args, " "), strings.Join(b.Args, " ")},
		{"rounds", fmt.Sprint(before.Rounds), fmt.Sprint(after.Rounds)},
		{"seconds per measurement and probe", seconds(before), seconds(after)},
	} {
		if f.before != f.after {
			list = append(list, fmt.Sprintf("%s: %s, then %s", f.name, cmp.Or(f.before, "unknown"),
				cmp.Or(f.after, "unknown")))
		}
	}
	for _, mode := range slices.Sorted(maps.Keys(b.Offloads)) {
		if offloads, both := a.Offloads[mode]; both {
			list = append(list, onlyInOne("underlay "+mode, offloads, b.Offloads[mode])...)
		}
	}
	for _, x := range after.Features {
		for _, y := range before.Features {
			if x.Underlay == y.Underlay && x.Target == y.Target {
				subject := fmt.Sprintf("kernel features of %s, %s", x.Target, x.Underlay)
				list = append(list, onlyInOne(subject, y.Used, x.Used)...)
			}
		}
	}
	return list
}

// onlyInOne returns one line on how two lists differ, none if they do not.
func onlyInOne(subject string, first, second []string) []string {
	var parts []string
	if only := without(first, second); len(only) > 0 {
		parts = append(parts, "only the first has "+strings.Join(only, ", "))
	}
	if only := without(second, first); len(only) > 0 {
		parts = append(parts, "only the second has "+strings.Join(only, ", "))
	}
	if len(parts) == 0 {
		return nil
	}
	return []string{subject + ": " + strings.Join(parts, "; ")}
}

// without returns the elements of list that other does not have.
func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list),
		func(x string) bool { return slices.Contains(other, x) })
}
