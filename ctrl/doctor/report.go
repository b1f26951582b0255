package doctor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
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
	r := Report{Findings: []Finding{}, Symptoms: []Finding{}, NotChecked: []NotChecked{},
		Passed: []string{}}
	for _, c := range checks() {
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
	if len(r.Findings) == 0 {
		r.Findings, r.Symptoms = r.Symptoms, []Finding{}
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

// Text writes the report for a human. verbose lists the checks that found nothing, too.
func (r Report) Text(w io.Writer, verbose bool) error {
	var b strings.Builder
	for _, f := range r.Findings {
		f.text(&b, "✗ ")
	}
	if len(r.Symptoms) > 0 {
		b.WriteString("Probably consequences of the above:\n\n")
	}
	for _, f := range r.Symptoms {
		f.text(&b, "! ")
	}
	switch {
	case len(r.Findings) > 0:
		fmt.Fprintf(&b, "%d found; docs/troubleshooting.md has a section for each name.\n",
			len(r.Findings))
	case len(r.NotChecked) > 0:
		b.WriteString("✓ nothing found by the checks that could look\n")
	default:
		b.WriteString("✓ nothing found\n")
	}
	fmt.Fprintf(&b, "%d checks passed, %d not made\n", len(r.Passed), len(r.NotChecked))
	reasons := map[string][]string{}
	var order []string
	for _, n := range r.NotChecked {
		if reasons[n.Reason] == nil {
			order = append(order, n.Reason)
		}
		reasons[n.Reason] = append(reasons[n.Reason], n.Name)
	}
	for _, reason := range order {
		fmt.Fprintf(&b, "? not checked, %s: %s\n", reason, strings.Join(reasons[reason], ", "))
	}
	if verbose {
		fmt.Fprintf(&b, "passed: %s\n", strings.Join(r.Passed, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (f Finding) text(b *strings.Builder, mark string) {
	fmt.Fprintf(b, "%s%s\n    seen:   %s\n    cause:  %s\n    remedy: %s\n\n", mark, f.Name, f.Evidence,
		f.Cause, f.Remedy)
}
