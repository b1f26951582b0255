package bench

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// reference is the rival that ratios are taken to wherever it was measured.
const reference = "vxlan"

// referenceIn is the name of the rival to compare with in an environment.
func (r *Result) referenceIn(e Environment) string { return referenceAmong(r.rivalsIn(e)) }

// referenceAmong chooses the kernel's VXLAN, else the first one.
func referenceAmong(rivals []string) string {
	if len(rivals) == 0 || slices.Contains(rivals, reference) {
		return reference
	}
	return rivals[0]
}

// rivalsIn lists who was measured in an environment, in the order of the run.
func (r *Result) rivalsIn(e Environment) []string {
	var names []string
	for _, rival := range r.Rivals {
		if slices.ContainsFunc(r.Series, func(s Series) bool { return s.Environment == e && s.Rival == rival.Name }) {
			names = append(names, rival.Name)
		}
	}
	return names
}

// Markdown writes a table for each environment: medians with the range of the rounds, and the ratio to the reference
// within the run.
func (r *Result) Markdown(w io.Writer) error {
	b := bufio.NewWriter(w)
	f := r.Facts
	fmt.Fprintf(b, "Measured %s on Linux %s, %d CPUs (%s), %s, weft %s %s; medians of %d interleaved rounds (lowest to highest), ≥ where the sender was the limit.\n",
		f.Time.Format("2006-01-02"), escape(f.Kernel), f.CPUs, escape(f.CPU), escape(f.Arch), escape(f.Version), escape(f.Commit), r.Rounds)
	if r.Incomplete != "" {
		fmt.Fprintf(b, "\nThe run ended early: %s\n", escape(r.Incomplete))
	}
	for _, e := range r.environments() {
		r.markdownTable(b, e)
	}
	if len(r.Skipped) > 0 {
		fmt.Fprint(b, "\nLeft out:\n\n")
		for _, s := range r.Skipped {
			fmt.Fprintf(b, "- %s\n", escape(s))
		}
	}
	return b.Flush()
}

// escape writes a value so that Markdown neither ends a cell nor begins HTML with it.
func escape(v any) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", "; ").Replace(fmt.Sprint(v))
}

func (r *Result) markdownTable(b io.Writer, e Environment) {
	rivals, to := r.rivalsIn(e), r.referenceIn(e)
	var names []string
	for _, rival := range rivals {
		names = append(names, escape(rival))
	}
	fmt.Fprintf(b, "\nIn bold the ratio to %s in the same round, median.\n", escape(to))
	fmt.Fprintf(b, "\n| underlay %s, MTU %d | %s |\n|---|%s\n", escape(e.Mode), e.MTU, strings.Join(names, " | "), strings.Repeat("---|", len(rivals)))
	for _, c := range r.cases(e) {
		for _, name := range c.Headlines {
			info := figureInfo(name)
			fmt.Fprintf(b, "| %s%s |", c.Title, headlineSuffix(c, info))
			for _, rival := range rivals {
				fmt.Fprintf(b, " %s |", cell(r.find(e, c.Name, rival), r.find(e, c.Name, to), info))
			}
			fmt.Fprintln(b)
		}
	}
}

// headlineSuffix tells a case's figures apart and names the unit.
func headlineSuffix(c Case, info FigureInfo) string {
	if len(c.Headlines) == 1 {
		return ", " + info.Unit
	}
	return " " + info.Title + ", " + info.Unit
}

// cell is what a table says about a figure of one series.
func cell(s, to *Series, info FigureInfo) string {
	spread, ratio := s.spread(info.Name), s.ratio(to, info.Name)
	if spread.N == 0 {
		return "-"
	}
	text := s.median(info)
	if spread.N > 1 {
		text += fmt.Sprintf(" (%s-%s)", number(spread.Min/info.Scale), number(spread.Max/info.Scale))
	}
	if ratio.N > 0 && s != to {
		text += fmt.Sprintf(" **%s**", number(ratio.Median))
	}
	return text
}
