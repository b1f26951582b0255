package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// schema is the version of the result file's form.
const schema = 1

// Result is everything that one run measured. It is what the JSON file holds.
type Result struct {
	Schema  int      `json:"schema"`
	Facts   Facts    `json:"facts"`
	Rounds  int      `json:"rounds"`
	Seconds Seconds  `json:"seconds"`
	Rivals  []Rival  `json:"rivals"`
	Skipped []Skip   `json:"skipped,omitempty"`
	Series  []Series `json:"series"`
	// Abilities says what our daemons used of the kernel in each environment, by rival.
	Abilities []Abilities `json:"abilities,omitempty"`
	// Incomplete says why the run ended before everything was measured; it is empty after a whole run.
	Incomplete string `json:"incomplete,omitempty"`
}

// Skip says what was not measured.
type Skip struct {
	Environment string `json:"environment,omitempty"`
	Case        string `json:"case,omitempty"`
	Rival       string `json:"rival"`
	Why         string `json:"why"`
}

// String is a line such as "wire 1500 ipip tcp-1: why".
func (s Skip) String() string {
	what := slices.DeleteFunc([]string{s.Environment, s.Rival, s.Case}, func(x string) bool { return x == "" })
	return strings.Join(what, " ") + ": " + strings.ReplaceAll(s.Why, "\n", "; ")
}

// Series is one rival on one case in one environment.
type Series struct {
	Environment
	Case    string    `json:"case"`
	Rival   string    `json:"rival"`
	Samples []Figures `json:"samples"` // one for each round
}

// Abilities of the kernel that a daemon used and did not use.
type Abilities struct {
	Environment
	Rival  string   `json:"rival"`
	Used   []string `json:"used"`
	Unused []string `json:"unused"`
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

// ReadResult reads what Write has written.
func ReadResult(r io.Reader) (*Result, error) {
	var result Result
	d := json.NewDecoder(r)
	err := d.Decode(&result)
	if errors.Is(err, io.EOF) {
		err = errors.New("the file is empty")
	}
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("more follows the result")
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

// check says what in the result could not be shown, or would be shown as something else.
func (r *Result) check() error {
	if r.Schema != schema {
		return fmt.Errorf("schema %d, want %d", r.Schema, schema)
	}
	if len(r.Series) == 0 {
		return errors.New("nothing was measured")
	}
	for i, rival := range r.Rivals {
		if rival.Name == "" {
			return errors.New("a rival has no name")
		}
		if slices.ContainsFunc(r.Rivals[:i], func(x Rival) bool { return x.Name == rival.Name }) {
			return fmt.Errorf("two rivals are called %q", rival.Name)
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
		return fmt.Errorf("no workload is called %q", s.Case)
	case !slices.ContainsFunc(r.Rivals, func(x Rival) bool { return x.Name == s.Rival }):
		return fmt.Errorf("rival %q is not among the result's rivals", s.Rival)
	case s.Mode == "" || s.MTU <= 0:
		return fmt.Errorf("an underlay of mode %q and MTU %d", s.Mode, s.MTU)
	case len(s.Samples) == 0:
		return errors.New("no samples")
	case r.find(s.Environment, s.Case, s.Rival) != s:
		return fmt.Errorf("%s, %s of %s stands there twice", s.Environment, s.Case, s.Rival)
	}
	return nil
}

// find returns the series of a rival, nil if it was not measured.
func (r *Result) find(e Environment, name, rival string) *Series {
	for i := range r.Series {
		if s := &r.Series[i]; s.Environment == e && s.Case == name && s.Rival == rival {
			return s
		}
	}
	return nil
}

// environments lists what was measured, in the order of the run.
func (r *Result) environments() []Environment {
	var list []Environment
	for _, s := range r.Series {
		if !slices.Contains(list, s.Environment) {
			list = append(list, s.Environment)
		}
	}
	return list
}

// cases lists the measured cases of an environment in the order of [Cases].
func (r *Result) cases(e Environment) []Case {
	var list []Case
	for _, c := range Cases() {
		if slices.ContainsFunc(r.Series, func(s Series) bool { return s.Environment == e && s.Case == c.Name }) {
			list = append(list, c)
		}
	}
	return list
}

// Spread is the middle of some values and how far they lie apart.
type Spread struct {
	Median, Min, Max float64
	N                int
}

// spreadOf summarizes the values of one figure.
func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(values))
	m := s[len(s)/2]
	if len(s)%2 == 0 {
		m = (s[len(s)/2-1] + m) / 2
	}
	return Spread{Median: m, Min: s[0], Max: s[len(s)-1], N: len(s)}
}

// values are a figure's in all rounds that have it.
func (s *Series) values(figure string) []float64 {
	var v []float64
	if s == nil {
		return v
	}
	for _, sample := range s.Samples {
		if x, ok := sample[figure]; ok {
			v = append(v, x)
		}
	}
	return v
}

// spread summarizes a figure.
func (s *Series) spread(figure string) Spread { return spreadOf(s.values(figure)) }

// median writes the middle of a figure, with "≥" where the sender was the limit in most rounds: the rival may carry more.
func (s *Series) median(info FigureInfo) string {
	text := number(s.spread(info.Name).Median / info.Scale)
	if info.Name == "rate" && s.spread("generator_bound").Median == 1 {
		return "≥" + text
	}
	return text
}

// ratio compares a figure with another series, round by round: what slows the machine down for a minute hits both.
func (s *Series) ratio(to *Series, figure string) Spread {
	if s == nil || to == nil {
		return Spread{}
	}
	var v []float64
	for i := range min(len(s.Samples), len(to.Samples)) {
		a, hasA := s.Samples[i][figure]
		b, hasB := to.Samples[i][figure]
		if hasA && hasB && b != 0 {
			v = append(v, a/b)
		}
	}
	return spreadOf(v)
}

// number writes v with three significant digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 0.1 || v == 0:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}
