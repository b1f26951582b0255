package bench

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

// noticeable is the smallest relative change that is worth a line, however clear it is.
const noticeable = 0.03

// Change is how one figure of one rival differs between two results.
type Change struct {
	Environment
	Case, Rival, Figure string
	Old, New            Spread
	// Reference is the rival to which Old and New are ratios within their runs, which cancel out how fast the machine was.
	// It is empty where one of the results has no such ratio, and for that rival itself.
	Reference string
}

// Factor is new over old, infinite where there was nothing.
func (c Change) Factor() float64 { return c.New.Median / c.Old.Median }

// Real says whether the change is beyond the noise: no round of one result is within the range of the other's rounds, and
// there are enough rounds for that to mean something. It still happens by chance, see [Change.Chance].
func (c Change) Real() bool {
	apart := c.New.Min > c.Old.Max || c.New.Max < c.Old.Min
	return c.enough() && apart && math.Abs(c.Factor()-1) >= noticeable
}

// fewestRounds is what each result must have. Of two rounds each, every third pair is apart by chance.
const fewestRounds = 3

func (c Change) enough() bool { return min(c.Old.N, c.New.N) >= fewestRounds }

// Chance is how likely the two ranges are apart although nothing has changed. The rounds of both are then in any order,
// all equally likely, and two of the ways to deal them out keep those of one result together at an end: 1 in 10 with three
// rounds each, 1 in 126 with five. A machine that was slower throughout one of the runs is no chance in this sense; it is
// why ratios are compared wherever there are some.
func (c Change) Chance() float64 {
	p := 2.0
	for i := 1; i <= c.New.N; i++ {
		p *= float64(i) / float64(c.Old.N+i)
	}
	return p
}

// Better says whether the change is for the better.
func (c Change) Better() bool { return (c.Factor() > 1) != figureInfo(c.Figure).LowerBetter }

// Changes compares every headline that both results have.
func Changes(old, now *Result) []Change {
	var list []Change
	for _, e := range now.environments() {
		to := commonReference(old, now, e)
		for _, c := range now.cases(e) {
			for _, rival := range now.rivalsIn(e) {
				for _, figure := range c.Headlines {
					change := Change{Environment: e, Case: c.Name, Rival: rival, Figure: figure}
					if change.measure(old, now, to); change.Old.N > 0 && change.New.N > 0 {
						list = append(list, change)
					}
				}
			}
		}
	}
	return list
}

// measure fills in what the two results say: ratios where both have them, else the figures themselves.
func (c *Change) measure(old, now *Result, to string) {
	a, b := old.find(c.Environment, c.Case, c.Rival), now.find(c.Environment, c.Case, c.Rival)
	c.Old, c.New, c.Reference = a.ratio(old.find(c.Environment, c.Case, to), c.Figure), b.ratio(now.find(c.Environment, c.Case, to), c.Figure), to
	if c.Old.N == 0 || c.New.N == 0 || c.Rival == to {
		c.Old, c.New, c.Reference = a.spread(c.Figure), b.spread(c.Figure), ""
	}
}

// commonReference chooses the reference among the rivals that both results have in an environment.
func commonReference(old, now *Result, e Environment) string {
	mine := now.rivalsIn(e)
	return referenceAmong(without(mine, without(mine, old.rivalsIn(e))))
}

// Compare writes what only one result has, what changed beyond the noise, and how much did not.
func Compare(w io.Writer, old, now *Result) error {
	b := bufio.NewWriter(w)
	for _, d := range differences(old, now) {
		fmt.Fprintln(b, "not the same:", d)
	}
	for _, x := range []struct {
		name        string
		this, other *Result
	}{{"first", old, now}, {"second", now, old}} {
		if x.this.Incomplete != "" {
			fmt.Fprintf(b, "the %s run ended early: %s\n", x.name, x.this.Incomplete)
		}
		for _, d := range x.this.lackedBy(x.other) {
			fmt.Fprintf(b, "only in the %s result: %s\n", x.name, d)
		}
	}
	changes := Changes(old, now)
	if len(changes) == 0 {
		fmt.Fprintln(b, "the two results have no measurement in common")
		return b.Flush()
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, c := range changes {
		if c.Real() {
			c.write(t)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	summarize(b, changes)
	return b.Flush()
}

// summarize says how much did not change, and how much would look changed if nothing were.
func summarize(w io.Writer, changes []Change) {
	same, few, chance := 0, 0, 0.0
	for _, c := range changes {
		switch {
		case !c.enough():
			few++
			continue
		case !c.Real():
			same++
		}
		chance += c.Chance()
	}
	if few > 0 {
		fmt.Fprintf(w, "%d of %d figures have fewer than %d rounds in one of the results, too few to tell a change from noise\n", few, len(changes), fewestRounds)
	}
	if enough := len(changes) - few; enough > 0 {
		fmt.Fprintf(w, "%d of %d figures are the same within the noise of their rounds; chance alone makes about %s of %d figures look changed\n",
			same, len(changes), number(chance), enough)
	}
}

// lackedBy lists what another result does not have, a line for each rival of an environment, and why if that one says so.
func (r *Result) lackedBy(other *Result) []string {
	var list []string
	for _, e := range r.environments() {
		for _, rival := range r.rivalsIn(e) {
			var names []string
			for _, c := range r.cases(e) {
				if r.find(e, c.Name, rival) != nil && other.find(e, c.Name, rival) == nil {
					names = append(names, c.Name)
				}
			}
			if len(names) > 0 {
				list = append(list, fmt.Sprintf("%s %s: %s%s", e, rival, strings.Join(names, ", "), other.excuse(e, rival, names)))
			}
		}
	}
	return list
}

// excuse says why a rival was left out of some cases of an environment, if it was.
func (r *Result) excuse(e Environment, rival string, cases []string) string {
	text := ""
	for _, s := range r.Skipped {
		if s.Environment == e.String() && s.Rival == rival && (s.Case == "" || slices.Contains(cases, s.Case)) {
			text += fmt.Sprintf(" (the other left it out: %s)", strings.ReplaceAll(s.Why, "\n", "; "))
		}
	}
	return text
}

// write writes the change as a line of a table.
func (c Change) write(w io.Writer) {
	word := "worse"
	if c.Better() {
		word = "better"
	}
	info := figureInfo(c.Figure)
	scale, unit := info.Scale, info.Unit
	if c.Reference != "" {
		scale, unit = 1, "x "+c.Reference
	}
	amount := fmt.Sprintf("%+.0f %%", 100*(c.Factor()-1))
	if c.Old.Median == 0 {
		amount = "from nothing"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s %s\t%s -> %s %s\t(%s to %s -> %s to %s)\t%s\n", word, c.Environment, c.Rival, c.Case, info.Title,
		number(c.Old.Median/scale), number(c.New.Median/scale), unit, number(c.Old.Min/scale), number(c.Old.Max/scale),
		number(c.New.Min/scale), number(c.New.Max/scale), amount)
}

// differences lists what makes absolute figures hard to compare.
func differences(old, now *Result) []string {
	var list []string
	a, b := old.Facts, now.Facts
	seconds := func(r *Result) string { return fmt.Sprintf("%v and %v", r.Seconds.Measure, r.Seconds.Probe) }
	for _, f := range []struct{ name, old, now string }{
		{"kernel", a.Kernel, b.Kernel}, {"CPU", a.CPU, b.CPU}, {"architecture", a.Arch, b.Arch},
		{"number of CPUs", fmt.Sprint(a.CPUs), fmt.Sprint(b.CPUs)}, {"virtual", fmt.Sprint(a.Hypervisor), fmt.Sprint(b.Hypervisor)},
		{"governor", a.Governor, b.Governor}, {"load at the start", a.Load, b.Load}, {"rights", a.Rights, b.Rights},
		{"TCP's congestion control", a.Congestion, b.Congestion}, {"Go", a.Go, b.Go}, {"commit", a.Commit, b.Commit},
		{"arguments", strings.Join(a.Args, " "), strings.Join(b.Args, " ")},
		{"rounds", fmt.Sprint(old.Rounds), fmt.Sprint(now.Rounds)},
		{"seconds of a measurement and of a probe", seconds(old), seconds(now)},
	} {
		if f.old != f.now {
			list = append(list, fmt.Sprintf("%s: %s, then %s", f.name, cmp.Or(f.old, "unknown"), cmp.Or(f.now, "unknown")))
		}
	}
	for _, mode := range slices.Sorted(maps.Keys(b.Underlay)) {
		if features, both := a.Underlay[mode]; both {
			list = append(list, onlyEach("underlay "+mode, features, b.Underlay[mode])...)
		}
	}
	for _, x := range now.Abilities {
		for _, y := range old.Abilities {
			if x.Environment == y.Environment && x.Rival == y.Rival {
				list = append(list, onlyEach(fmt.Sprintf("abilities of %s, %s", x.Rival, x.Environment), y.Used, x.Used)...)
			}
		}
	}
	return list
}

// onlyEach says in one line how two lists differ, in none if they do not.
func onlyEach(what string, first, second []string) []string {
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
	return []string{what + ": " + strings.Join(parts, "; ")}
}

// without returns what is in list and not in other.
func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(x string) bool { return slices.Contains(other, x) })
}
