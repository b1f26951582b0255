package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
)

//go:embed report.html
var pageTemplate string

// page is what the template shows.
type page struct {
	Facts    Facts
	Ended    string // early, and why
	Rounds   int
	Seconds  Seconds
	Rivals   []Rival
	Sections []section
	Skipped  []Skip
	Underlay []underlayFact
}

// section is one environment.
type section struct {
	Title     string
	Reference string
	Cards     []card
	Small     []smallTable
	Abilities []Abilities
}

// card is one chart: a figure of a case, a bar for each rival.
type card struct {
	Title, Unit string
	LowerBetter bool
	Bars        []bar
}

// bar is one rival's. Widths are percent of the chart.
type bar struct {
	Rival, Value, Range, Ratio string
	Width, From, Length        float64
	Kind                       string // "ours", "reference" or "other": a colour
}

// smallTable is the small print of a case.
type smallTable struct {
	Title  string
	Rivals []string
	Rows   []smallRow
}

type smallRow struct {
	Title string
	Cells []string
}

type underlayFact struct{ Mode, Features string }

// HTML writes a page that needs nothing else: charts, small print, the machine and the method.
func (r *Result) HTML(w io.Writer) error {
	t, err := template.New("report").Parse(pageTemplate)
	if err != nil {
		return fmt.Errorf("parse page: %w", err)
	}
	p := page{Facts: r.Facts, Ended: r.Incomplete, Rounds: r.Rounds, Seconds: r.Seconds, Rivals: r.Rivals, Skipped: r.Skipped}
	for _, e := range r.environments() {
		p.Sections = append(p.Sections, r.section(e))
	}
	for mode, features := range r.Facts.Underlay {
		p.Underlay = append(p.Underlay, underlayFact{mode, strings.Join(features, ", ")})
	}
	slices.SortFunc(p.Underlay, func(a, b underlayFact) int { return strings.Compare(a.Mode, b.Mode) })
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

func (r *Result) section(e Environment) section {
	s := section{Title: fmt.Sprintf("Underlay %s, MTU %d", e.Mode, e.MTU), Reference: r.referenceIn(e)}
	for _, c := range r.cases(e) {
		for _, name := range c.Headlines {
			s.Cards = append(s.Cards, r.card(e, c, figureInfo(name)))
		}
		if t := r.smallTable(e, c); len(t.Rows) > 0 {
			s.Small = append(s.Small, t)
		}
	}
	for _, a := range r.Abilities {
		if a.Environment == e {
			s.Abilities = append(s.Abilities, a)
		}
	}
	return s
}

func (r *Result) card(e Environment, c Case, info FigureInfo) card {
	chart := card{Title: c.Title, Unit: info.Unit, LowerBetter: info.LowerBetter}
	if len(c.Headlines) > 1 {
		chart.Title += ", " + info.Title
	}
	to := r.referenceIn(e)
	var longest float64
	for _, rival := range r.rivalsIn(e) {
		longest = max(longest, r.find(e, c.Name, rival).spread(info.Name).Max)
	}
	if longest == 0 {
		longest = 1
	}
	for _, rival := range r.rivalsIn(e) {
		series := r.find(e, c.Name, rival)
		s := series.spread(info.Name)
		if s.N == 0 {
			continue
		}
		b := bar{Rival: rival, Value: series.median(info), Kind: kindOf(rival, to),
			Range: number(s.Min/info.Scale) + " to " + number(s.Max/info.Scale),
			Width: 100 * s.Median / longest, From: 100 * s.Min / longest, Length: 100 * (s.Max - s.Min) / longest}
		if ratio := series.ratio(r.find(e, c.Name, to), info.Name); ratio.N > 0 && rival != to {
			b.Ratio = "× " + number(ratio.Median)
		}
		chart.Bars = append(chart.Bars, b)
	}
	return chart
}

// kindOf chooses the colour of a rival's bars.
func kindOf(rival, to string) string {
	switch {
	case rival == to:
		return "reference"
	case rival == "weftd":
		return "ours"
	default:
		return "other"
	}
}

func (r *Result) smallTable(e Environment, c Case) smallTable {
	t := smallTable{Title: c.Title, Rivals: r.rivalsIn(e)}
	for _, info := range FigureInfos() {
		if slices.Contains(c.Headlines, info.Name) {
			continue
		}
		row := smallRow{Title: info.Title}
		if info.Unit != "" {
			row.Title += ", " + info.Unit
		}
		some := false
		for _, rival := range t.Rivals {
			s := r.find(e, c.Name, rival).spread(info.Name)
			text := ""
			if s.N > 0 {
				text, some = number(s.Median/info.Scale), true
			}
			row.Cells = append(row.Cells, text)
		}
		if some {
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}
