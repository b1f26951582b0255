package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Names of Weft's daemon among the targets.
const (
	weftTarget = "weftd" // without a fast path
	fastTarget = "fast"  // with default flags
)

// method describes how the run was measured, in paragraphs.
func (r *Result) method() []string {
	return []string{
		"Every node and pod is a network namespace of one machine. Two nodes are joined by one veth pair; each has one pod" +
			" behind a bridge. In mode “wire” the pair has no segmentation offload, so every frame is cut to the MTU before it" +
			" leaves, and the receiver may join frames again. Mode “nic” has no checksum offload either, as most network cards" +
			" of clouds have none for tunnels. In mode “off” the pair passes frames of up to 64 KiB whole, which no" +
			" network card does for a tunnel.",
		"CPU per GB and per million packets is the time that all CPUs of the machine spent, interrupts and the generators" +
			" included; the generators' share is in the figure of every target.",
		fmt.Sprintf("Targets take turns: each of the %d rounds measures every target once, so a slow minute of the machine"+
			" affects all of them. A measurement takes %v s, a probe of the search for the highest UDP rate %v s.",
			r.Rounds, r.Seconds.Measure, r.Seconds.Probe) + r.fewRounds(),
		"A UDP rate is the highest one at which less than 0.1 % of the packets are lost, in the first or second attempt." +
			" The generators use the same CPUs as the targets: compare within one table only.",
	}
}

// claimRounds is the number of rounds from which on a median may be quoted without its range.
const claimRounds = 10

// fewRounds returns a warning about a result of few rounds, empty for others.
func (r *Result) fewRounds() string {
	if r.Rounds >= claimRounds {
		return ""
	}
	return fmt.Sprintf(" These are fewer than %d rounds: no basis for a claim about differences within the ranges.",
		claimRounds)
}

// Markdown writes a complete page: host, method, one table per underlay, how to read it, and where
// Weft is slower.
func (r *Result) Markdown(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprint(b, "# Benchmarks\n\nThis page is written by `weft bench report --markdown`; do not edit it."+
		" `make bench` measures on your machine.\n")
	r.writeIncomplete(b)
	fmt.Fprint(b, "\n## Host\n\n")
	tableHead(b, "property", "value")
	for _, p := range r.Host.properties() {
		tableRow(b, p.Name, escape(p.Value))
	}
	fmt.Fprint(b, "\n## Method\n")
	for _, paragraph := range r.method() {
		fmt.Fprintf(b, "\n%s\n", paragraph)
	}
	for _, u := range r.underlays() {
		fmt.Fprintf(b, "\n## Underlay %s, MTU %d\n\n", escape(u.Mode), u.MTU)
		r.writeTable(b, u)
		for _, note := range r.notes(u) {
			fmt.Fprintf(b, "\n%s.\n", note)
		}
	}
	r.writeLegend(b)
	r.writeLosses(b)
	if len(r.Skipped) > 0 {
		fmt.Fprint(b, "\n## Skipped\n\n")
		r.writeSkipped(b)
	}
	return b.Flush()
}

// writeLegend explains rows, columns and cells.
func (r *Result) writeLegend(w io.Writer) {
	fmt.Fprint(w, `
## How to read the tables

A cell is the median of the rounds, their range in parentheses and, in bold, the median of the ratios to the reference
target in the same round. For rates, a ratio above 1 is better than the reference; for times and CPU use, one below 1 is.

“≥” means that the sender was the limit in most rounds: the target may carry more, and ratios
that involve it are approximate.
“-” means that there is no value.

`)
	tableHead(w, "target", "description")
	for _, target := range r.Targets {
		tableRow(w, escape(target.Name), escape(target.Description))
	}
	fmt.Fprintln(w)
	tableHead(w, "workload", "description")
	measured := r.measuredCases()
	for _, c := range measured {
		tableRow(w, c.Title, c.Description)
	}
}

// notes returns the notes on the cases that were measured in an underlay, each with its title.
func (r *Result) notes(u Underlay) []string {
	var list []string
	for _, c := range r.cases(u) {
		if c.Note != "" {
			list = append(list, c.Title+": "+c.Note)
		}
	}
	return list
}

// measuredCases lists the cases that were measured in any underlay.
func (r *Result) measuredCases() []Case {
	return slices.DeleteFunc(Cases(), func(c Case) bool {
		return !slices.ContainsFunc(r.Series, func(s Series) bool { return s.Case == c.Name })
	})
}

// writeLosses lists the headline metrics in which Weft is behind kernel VXLAN, with default flags
// and without a fast path, with the reasons. Nothing is written if neither was measured beside
// VXLAN.
func (r *Result) writeLosses(w io.Writer) {
	var all []losses
	for _, target := range []string{fastTarget, weftTarget} {
		if l := r.losses(target); l.compared {
			all = append(all, l)
		}
	}
	if len(all) == 0 {
		return
	}
	fmt.Fprint(w, "\n## Where Weft is slower or uses more CPU time than VXLAN\n")
	for _, l := range all {
		l.write(w, r.underlays())
	}
}

// losses are the headline metrics in which a target is behind kernel VXLAN.
type losses struct {
	target   string
	compared bool // with VXLAN in any underlay
	rows     [][]string
	cases    []Case // of the rows
}

func (l losses) write(w io.Writer, underlays []Underlay) {
	fmt.Fprintln(w)
	if len(l.rows) == 0 {
		fmt.Fprintf(w, "%s: in no workload of this run.\n", l.target)
		return
	}
	head := []string{"ratio of " + l.target + " to " + defaultReference}
	for _, u := range underlays {
		head = append(head, fmt.Sprintf("%s, MTU %d", escape(u.Mode), u.MTU))
	}
	tableHead(w, head...)
	for _, cells := range l.rows {
		tableRow(w, cells...)
	}
	l.writeCosts(w)
}

func (r *Result) losses(target string) losses {
	l := losses{target: target}
	for _, c := range r.measuredCases() {
		behind := false
		for _, name := range c.Headlines {
			cells, measured, lost := r.lossRow(target, c, MetricByName(name))
			l.compared = l.compared || measured
			behind = behind || lost
			if lost {
				l.rows = append(l.rows, cells)
			}
		}
		if behind {
			l.cases = append(l.cases, c)
		}
	}
	return l
}

// lossRow returns a row of ratios of a target to VXLAN, one per underlay. measured reports whether
// there is any, lost whether the target is behind in the median of any.
func (r *Result) lossRow(target string, c Case, m Metric) (cells []string, measured, lost bool) {
	cells = []string{c.headlineTitle(m)}
	for _, u := range r.underlays() {
		ratio := r.Find(u, c.Name, target).ratio(r.Find(u, c.Name, defaultReference), m.Name)
		if ratio.N == 0 {
			cells = append(cells, "-")
			continue
		}
		measured = true
		text := fmt.Sprintf("%s (%s-%s)", number(ratio.Median), number(ratio.Min),
			number(ratio.Max))
		if ratio.Median != 1 && (ratio.Median > 1) == m.LowerBetter {
			lost, text = true, "**"+text+"**"
		}
		cells = append(cells, text)
	}
	return cells, measured, lost
}

// writeCosts lists the reasons for the losses, each with the cases that it applies to.
func (l losses) writeCosts(w io.Writer) {
	titles := make(map[string][]string)
	var costs []string // in the order of the cases
	for _, c := range l.cases {
		cost := c.cost(l.target)
		if titles[cost] == nil && cost != "" {
			costs = append(costs, cost)
		}
		titles[cost] = append(titles[cost], c.Title)
	}
	if len(costs) > 0 {
		fmt.Fprintln(w)
	}
	for _, cost := range costs {
		fmt.Fprintf(w, "- %s: %s.\n", strings.Join(titles[cost], "; "), cost)
	}
}
