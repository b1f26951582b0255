package doctor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Finding is a fault.
type Finding struct {
	// Name is the name of the check, and the anchor of its section in docs/troubleshooting.md.
	Name     string `json:"name"`
	Evidence string `json:"evidence"` // the observation, one line
	Cause    string `json:"cause"`    // the likely cause, one line
	Remedy   string `json:"remedy"`   // a command or an instruction
	// Fix holds the settings that mend the fault without a risk for other programs; usually empty.
	Fix []Setting `json:"fix,omitempty"`
}

// Setting is a value to be written to a file below /proc/sys or /sys.
type Setting struct {
	Path  string `json:"path"`
	Value string `json:"value"`
}

// NotChecked is a check that could not look.
type NotChecked struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Report is the result of an examination.
type Report struct {
	// Findings are the faults. Symptoms are observations that are probably consequences of them.
	Findings   []Finding    `json:"findings"`
	Symptoms   []Finding    `json:"symptoms"`
	NotChecked []NotChecked `json:"not_checked"`
	Passed     []string     `json:"passed"` // names of the checks that found nothing
}

// Examine applies all checks to the facts.
func Examine(f *Facts) Report {
	r := examine(f, checks())
	if len(f.BelowIP) > 0 {
		r.NotChecked = append(r.NotChecked, NotChecked{"filters below IP",
			"these tables are not understood: nft list table " + listed(f.BelowIP)})
	}
	if f.Second != nil {
		r.add(examine(f.Second, familyChecks()))
	}
	if len(r.Findings) == 0 {
		r.Findings, r.Symptoms = r.Symptoms, []Finding{}
	}
	return r
}

// add adds the report on the other family. A check counts as passed if it found nothing in both.
func (r *Report) add(other Report) {
	for _, f := range other.Findings {
		if !slices.ContainsFunc(r.Findings, f.same) {
			r.Findings = append(r.Findings, f)
		}
	}
	for _, f := range other.Symptoms {
		if !slices.ContainsFunc(r.Symptoms, f.same) {
			r.Symptoms = append(r.Symptoms, f)
		}
	}
	for _, n := range other.NotChecked {
		if !slices.Contains(r.NotChecked, n) {
			r.NotChecked = append(r.NotChecked, n)
		}
	}
	r.Passed = slices.DeleteFunc(r.Passed, func(name string) bool {
		return slices.ContainsFunc(familyChecks(), func(c check) bool { return c.name == name }) &&
			!slices.Contains(other.Passed, name)
	})
}

// same reports whether two findings have one name and one evidence.
func (f Finding) same(g Finding) bool { return f.Name == g.Name && f.Evidence == g.Evidence }

// examine applies checks to the facts.
func examine(f *Facts, list []check) Report {
	r := Report{Findings: []Finding{}, Symptoms: []Finding{}, NotChecked: []NotChecked{},
		Passed: []string{}}
	for _, c := range list {
		if reason := f.missing(c.needs); reason != "" {
			r.NotChecked = append(r.NotChecked, NotChecked{c.name, reason})
			continue
		}
		found := c.find(f)
		for i := range found {
			found[i].Name = c.name
		}
		switch {
		case len(found) == 0:
			r.Passed = append(r.Passed, c.name)
		case c.symptom:
			r.Symptoms = append(r.Symptoms, found...)
		default:
			r.Findings = append(r.Findings, found...)
		}
	}
	return r
}

// Names lists the names of all checks.
func Names() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

// Fix writes the settings of all findings, reports each to w, and continues after errors. fixed is
// the number of findings that had settings.
func (r Report) Fix(w io.Writer) (fixed int, err error) {
	for _, f := range r.Findings {
		for _, s := range f.Fix {
			if writeErr := os.WriteFile(s.Path, []byte(s.Value), 0o644); writeErr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", f.Name, writeErr))
				continue
			}
			fmt.Fprintf(w, "%s: wrote %s to %s\n", f.Name, s.Value, s.Path)
		}
		if len(f.Fix) > 0 {
			fixed++
		}
	}
	return fixed, err
}

// Text writes the report for a human, in lines of at most width characters. verbose lists the
// checks that found nothing, too.
func (r Report) Text(w io.Writer, width int, verbose bool) error {
	t := wrapper{width: width}
	for _, f := range r.Findings {
		f.text(&t, "✗ ")
	}
	if len(r.Symptoms) > 0 {
		t.line("", "Probably consequences of the above:")
		t.line("", "")
	}
	for _, f := range r.Symptoms {
		f.text(&t, "! ")
	}
	switch {
	case len(r.Findings) > 0:
		t.line("", fmt.Sprintf("%d found; docs/troubleshooting.md has a section for each name.",
			len(r.Findings)))
	case len(r.NotChecked) > 0:
		t.line("", "✓ nothing found by the checks that could look")
	default:
		t.line("", "✓ nothing found")
	}
	t.line("", fmt.Sprintf("%d checks passed, %d not made", len(r.Passed), len(r.NotChecked)))
	reasons := map[string][]string{}
	var order []string
	for _, n := range r.NotChecked {
		if reasons[n.Reason] == nil {
			order = append(order, n.Reason)
		}
		reasons[n.Reason] = append(reasons[n.Reason], n.Name)
	}
	for _, reason := range order {
		t.line("? ", fmt.Sprintf("not checked, %s: %s", reason, listed(reasons[reason])))
	}
	if verbose {
		t.line("", "passed: "+listed(r.Passed))
	}
	_, err := io.WriteString(w, t.String())
	return err
}

func (f Finding) text(t *wrapper, mark string) {
	t.line(mark, f.Name)
	t.line("    seen:   ", f.Evidence)
	t.line("    cause:  ", f.Cause)
	t.line("    remedy: ", f.Remedy)
	t.line("", "")
}
