package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
)

//go:embed report.html
var htmlTemplate string

// htmlPage is the input of the template.
type htmlPage struct {
	Time       string
	Incomplete string
	Rounds     int
	Host       []property
	Targets    []Target
	Sections   []htmlSection
	Skipped    []Skip
	Method     []string // paragraphs
	Offloads   []property
}

// htmlSection is one underlay.
type htmlSection struct {
	Title     string
	Reference string
	Charts    []chart
	Notes     []string
	Details   []detailTable
	Features  []Features
}

// chart is a metric of a case, with one bar per target.
type chart struct {
	Title, Unit string
	LowerBetter bool
	Bars        []bar
}

// bar is one target in a chart. Widths are percentages of the chart.
type bar struct {
	Target, Value, Range, Ratio string
	Width, From, Length         float64
	Kind                        string // "weft", "reference" or "other": the colour
}

// detailTable is the metrics of a case that are not headlines.
type detailTable struct {
	Title   string
	Targets []string
	Rows    []detailRow
}

type detailRow struct {
	Title string
	Cells []string
}

// HTML writes a self-contained page: charts, details, the host and the method.
func (r *Result) HTML(w io.Writer) error {
	t, err := template.New("report").Parse(htmlTemplate)
	if err != nil {
		return fmt.Errorf("parse page: %w", err)
	}
	p := htmlPage{Time: r.Host.Time.Format("2006-01-02"), Incomplete: r.Incomplete,
		Rounds: r.Rounds, Host: r.Host.properties(), Targets: r.Targets, Skipped: r.Skipped,
		Method: r.method(), Offloads: r.offloads()}
	for _, u := range r.underlays() {
		p.Sections = append(p.Sections, r.htmlSection(u))
	}
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// offloads lists the offload features of the underlay devices, one line per mode.
func (r *Result) offloads() []property {
	var list []property
	for mode, features := range r.Host.Offloads {
		list = append(list, property{mode, strings.Join(features, ", ")})
	}
	slices.SortFunc(list, func(a, b property) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (r *Result) htmlSection(u Underlay) htmlSection {
	s := htmlSection{Title: fmt.Sprintf("Underlay %s, MTU %d", u.Mode, u.MTU),
		Reference: r.referenceIn(u), Notes: r.notes(u)}
	for _, c := range r.cases(u) {
		for _, name := range c.Headlines {
			s.Charts = append(s.Charts, r.chart(u, c, MetricByName(name)))
		}
		if t := r.details(u, c); len(t.Rows) > 0 {
			s.Details = append(s.Details, t)
		}
	}
	for _, f := range r.Features {
		if f.Underlay == u {
			s.Features = append(s.Features, f)
		}
	}
	return s
}

func (r *Result) chart(u Underlay, c Case, m Metric) chart {
	ch := chart{Title: c.headlineTitle(m), Unit: m.Unit, LowerBetter: m.LowerBetter}
	reference := r.referenceIn(u)
	var longest float64
	for _, target := range r.targetsIn(u) {
		longest = max(longest, r.Find(u, c.Name, target).Spread(m.Name).Max)
	}
	if longest == 0 {
		longest = 1
	}
	for _, target := range r.targetsIn(u) {
		series := r.Find(u, c.Name, target)
		s := series.Spread(m.Name)
		if s.N == 0 {
			continue
		}
		b := bar{Target: target, Value: series.median(m), Kind: barKind(target, reference),
			Range: m.Format(s.Min) + " to " + m.Format(s.Max),
			Width: 100 * s.Median / longest, From: 100 * s.Min / longest, Length: 100 * (s.Max - s.Min) / longest}
		if ratio := series.ratio(r.Find(u, c.Name, reference), m.Name); ratio.N > 0 &&
			target != reference {
			b.Ratio = "× " + number(ratio.Median)
		}
		ch.Bars = append(ch.Bars, b)
	}
	return ch
}

// barKind selects the colour of a target's bars.
func barKind(target, reference string) string {
	switch target {
	case reference:
		return "reference"
	case "weftd":
		return "weft"
	default:
		return "other"
	}
}

func (r *Result) details(u Underlay, c Case) detailTable {
	t := detailTable{Title: c.Title, Targets: r.targetsIn(u)}
	for _, m := range Metrics() {
		if slices.Contains(c.Headlines, m.Name) {
			continue
		}
		row := detailRow{Title: m.Title}
		if m.Unit != "" {
			row.Title += ", " + m.Unit
		}
		measured := false
		for _, target := range t.Targets {
			s := r.Find(u, c.Name, target).Spread(m.Name)
			text := ""
			if s.N > 0 {
				text, measured = m.Format(s.Median), true
			}
			row.Cells = append(row.Cells, text)
		}
		if measured {
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}
