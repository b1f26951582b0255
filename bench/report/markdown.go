package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Tables writes the headline metrics in one Markdown table per underlay, and the skipped
// measurements.
func (r *Result) Tables(w io.Writer) error {
	b := bufio.NewWriter(w)
	h := r.Host
	fmt.Fprintf(b, "Measured %s on Linux %s, %d CPUs (%s), %s, weft %s %s.\n",
		h.Time.Format("2006-01-02"),
		escape(h.Kernel), h.CPUs, escape(h.CPU), escape(h.Arch), escape(h.Version), escape(h.Commit))
	r.writeIncomplete(b)
	fmt.Fprintf(b, "\nMedians of %d interleaved rounds (lowest-highest); ≥: the sender was the limit.\n", r.Rounds)
	for _, u := range r.underlays() {
		fmt.Fprintln(b)
		r.writeTable(b, u)
	}
	if len(r.Skipped) > 0 {
		fmt.Fprint(b, "\nSkipped:\n\n")
		r.writeSkipped(b)
	}
	return b.Flush()
}

func (r *Result) writeIncomplete(w io.Writer) {
	if r.Incomplete != "" {
		fmt.Fprintf(w, "\nThe run ended early: %s\n", escape(r.Incomplete))
	}
}

func (r *Result) writeSkipped(w io.Writer) {
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "- %s\n", escape(s))
	}
}

// escape formats a value so that it neither ends a table cell nor starts HTML.
func escape(v any) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", "; ").Replace(fmt.Sprint(v))
}

// tableRow writes a row of a Markdown table.
func tableRow(w io.Writer, cells ...string) {
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

// tableHead writes the head of a Markdown table.
func tableHead(w io.Writer, cells ...string) {
	tableRow(w, cells...)
	fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(cells)))
}

func escapeAll(list []string) []string {
	escaped := make([]string, len(list))
	for i, s := range list {
		escaped[i] = escape(s)
	}
	return escaped
}

func (r *Result) writeTable(w io.Writer, u Underlay) {
	targets, reference := r.targetsIn(u), r.referenceIn(u)
	fmt.Fprintf(w, "Bold: median ratio to %s in the same round.\n\n", escape(reference))
	title := fmt.Sprintf("underlay %s, MTU %d", escape(u.Mode), u.MTU)
	tableHead(w, append([]string{title}, escapeAll(targets)...)...)
	for _, c := range r.cases(u) {
		for _, name := range c.Headlines {
			m := MetricByName(name)
			cells := []string{rowTitle(c, m)}
			for _, target := range targets {
				cells = append(cells, cell(r.Find(u, c.Name, target), r.Find(u, c.Name, reference),
					m))
			}
			tableRow(w, cells...)
		}
	}
}

func rowTitle(c Case, m Metric) string { return c.headlineTitle(m) + ", " + m.Unit }

// cell returns median, range and ratio of a series' metric.
func cell(s, reference *Series, m Metric) string {
	spread, ratio := s.Spread(m.Name), s.ratio(reference, m.Name)
	if spread.N == 0 {
		return "-"
	}
	text := s.median(m)
	if spread.N > 1 {
		text += fmt.Sprintf(" (%s-%s)", m.Format(spread.Min), m.Format(spread.Max))
	}
	if ratio.N > 0 && s != reference {
		text += fmt.Sprintf(" **%s**", number(ratio.Median))
	}
	return text
}

// summaryCases are the rows of the summary.
func summaryCases() []string {
	return []string{"tcp-1", "tcp-4", "udp-64-1", "rtt-idle", "rtt-sparse", "rtt-bulk", "connect"}
}

// summaryTargets are the columns of the summary.
func summaryTargets() []string { return []string{defaultReference, fastTarget, weftTarget, "flannel"} }

// Summary writes a short Markdown table for the README: seven workloads and four targets in the
// first underlay, medians only. "-" stands for a value that was not measured.
func (r *Result) Summary(w io.Writer) error {
	b := bufio.NewWriter(w)
	u := r.underlays()[0]
	tableHead(b, append([]string{fmt.Sprintf("underlay %s, MTU %d", escape(u.Mode), u.MTU)},
		summaryTargets()...)...)
	for _, c := range Cases() {
		if !slices.Contains(summaryCases(), c.Name) {
			continue
		}
		m := MetricByName(c.Headlines[0])
		cells := []string{rowTitle(c, m)}
		for _, target := range summaryTargets() {
			text := "-"
			if s := r.Find(u, c.Name, target); s.Spread(m.Name).N > 0 {
				text = s.median(m)
			}
			cells = append(cells, text)
		}
		tableRow(b, cells...)
	}
	return b.Flush()
}
