package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Schema is the version of the result file's format.
const Schema = 1

// Result is everything that one run measured. It is the content of the JSON file.
type Result struct {
	Schema  int      `json:"schema"`
	Host    Host     `json:"host"`
	Rounds  int      `json:"rounds"`
	Seconds Seconds  `json:"seconds"`
	Targets []Target `json:"targets"`
	Skipped []Skip   `json:"skipped,omitempty"`
	Series  []Series `json:"series"`
	// Features lists the kernel features that weftd used in each underlay, by target.
	Features []Features `json:"features,omitempty"`
	// Incomplete is the reason why the run ended early; it is empty after a complete run.
	Incomplete string `json:"incomplete,omitempty"`
}

// Target is something that carries packets between the pods of nodes.
type Target struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// Underlay is the network between the nodes.
type Underlay struct {
	// Mode is "wire", whose devices have no segmentation offload, "nic", whose devices have no
	// checksum offload either, or "off", whose devices pass 64 KiB frames whole.
	Mode string `json:"mode"`
	MTU  int    `json:"mtu"`
}

// String returns, for instance, "wire 1500".
func (u Underlay) String() string { return fmt.Sprintf("%s %d", u.Mode, u.MTU) }

// Seconds is the duration of measurements.
type Seconds struct {
	Measure float64 `json:"measure"` // of throughput, round trips and connections
	Probe   float64 `json:"probe"`   // of one rate in the search for the highest one
}

// Skip is a target that was not measured in a case; an empty case stands for all.
type Skip struct {
	Underlay Underlay `json:"underlay"`
	Case     string   `json:"case,omitempty"`
	Target   string   `json:"target"`
	Reason   string   `json:"reason"`
}

// String returns, for instance, "wire 1500 ipip tcp-1: no driver".
func (s Skip) String() string {
	subject := s.Underlay.String() + " " + s.Target
	if s.Case != "" {
		subject += " " + s.Case
	}
	return subject + ": " + strings.ReplaceAll(s.Reason, "\n", "; ")
}

// Series is the samples of one target in one case and underlay.
type Series struct {
	Underlay Underlay `json:"underlay"`
	Case     string   `json:"case"`
	Target   string   `json:"target"`
	Samples  []Sample `json:"samples"` // one per round
}

// Features is the kernel features that a daemon used and did not use.
type Features struct {
	Underlay Underlay `json:"underlay"`
	Target   string   `json:"target"`
	Used     []string `json:"used"`
	Unused   []string `json:"unused"`
}

// Write writes the result as JSON.
func (r *Result) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// Read reads a result that [Result.Write] has written.
func Read(r io.Reader) (*Result, error) {
	var result Result
	d := json.NewDecoder(r)
	err := d.Decode(&result)
	if errors.Is(err, io.EOF) {
		err = errors.New("the file is empty")
	}
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("trailing data after the result")
		}
	}
	if err == nil {
		err = result.check()
	}
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	return &result, nil
}

// check returns an error if the result could not be shown correctly.
func (r *Result) check() error {
	if r.Schema != Schema {
		return fmt.Errorf("schema %d, want %d", r.Schema, Schema)
	}
	if len(r.Series) == 0 {
		return errors.New("nothing was measured")
	}
	for i, target := range r.Targets {
		if target.Name == "" {
			return errors.New("a target has no name")
		}
		if slices.ContainsFunc(r.Targets[:i], func(x Target) bool { return x.Name == target.Name }) {
			return fmt.Errorf("two targets are named %q", target.Name)
		}
	}
	for i := range r.Series {
		if err := r.checkSeries(&r.Series[i]); err != nil {
			return fmt.Errorf("series %d: %w", i+1, err)
		}
	}
	return nil
}

func (r *Result) checkSeries(s *Series) error {
	switch {
	case !slices.ContainsFunc(Cases(), func(c Case) bool { return c.Name == s.Case }):
		return fmt.Errorf("unknown workload %q", s.Case)
	case !slices.ContainsFunc(r.Targets, func(x Target) bool { return x.Name == s.Target }):
		return fmt.Errorf("target %q is not among the result's targets", s.Target)
	case s.Underlay.Mode == "" || s.Underlay.MTU <= 0:
		return fmt.Errorf("underlay of mode %q and MTU %d", s.Underlay.Mode, s.Underlay.MTU)
	case len(s.Samples) == 0:
		return errors.New("no samples")
	case r.Find(s.Underlay, s.Case, s.Target) != s:
		return fmt.Errorf("second series of %s, %s, %s", s.Underlay, s.Case, s.Target)
	}
	return nil
}

// Find returns the series of a target in a case, nil if it was not measured.
func (r *Result) Find(u Underlay, name, target string) *Series {
	for i := range r.Series {
		if s := &r.Series[i]; s.Underlay == u && s.Case == name && s.Target == target {
			return s
		}
	}
	return nil
}

// underlays lists the measured underlays in the order of the run.
func (r *Result) underlays() []Underlay {
	var list []Underlay
	for _, s := range r.Series {
		if !slices.Contains(list, s.Underlay) {
			list = append(list, s.Underlay)
		}
	}
	return list
}

// cases lists the cases that were measured in an underlay, in the order of [Cases].
func (r *Result) cases(u Underlay) []Case {
	return slices.DeleteFunc(Cases(), func(c Case) bool {
		return !slices.ContainsFunc(r.Series, func(s Series) bool {
			return s.Underlay == u && s.Case == c.Name
		})
	})
}

// targetsIn lists the targets that were measured in an underlay, in the order of the run.
func (r *Result) targetsIn(u Underlay) []string {
	var names []string
	for _, target := range r.Targets {
		if slices.ContainsFunc(r.Series, func(s Series) bool {
			return s.Underlay == u && s.Target == target.Name
		}) {
			names = append(names, target.Name)
		}
	}
	return names
}

// defaultReference is the target that ratios are taken to wherever it was measured.
const defaultReference = "vxlan"

// referenceIn returns the target that ratios are taken to in an underlay: VXLAN if it was measured,
// else the first one.
func (r *Result) referenceIn(u Underlay) string {
	targets := r.targetsIn(u)
	if len(targets) == 0 || slices.Contains(targets, defaultReference) {
		return defaultReference
	}
	return targets[0]
}
