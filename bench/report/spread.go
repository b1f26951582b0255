package report

import "slices"

// Spread is the median and the range of some values.
type Spread struct {
	Median, Min, Max float64
	N                int
}

// spreadOf returns the spread of values.
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

// values returns a metric's values in the rounds that have it.
func (s *Series) values(metric string) []float64 {
	var v []float64
	if s == nil {
		return v
	}
	for _, sample := range s.Samples {
		if x, ok := sample[metric]; ok {
			v = append(v, x)
		}
	}
	return v
}

// Spread returns the spread of a metric over the rounds; it is zero for a nil series.
func (s *Series) Spread(metric string) Spread { return spreadOf(s.values(metric)) }

// median formats the median of a metric, with "≥" if the sender was the limit in most rounds: the
// target may carry more.
func (s *Series) median(m Metric) string {
	text := m.Format(s.Spread(m.Name).Median)
	if m.Name == "rate" && s.Spread("generator_bound").Median == 1 {
		return "≥" + text
	}
	return text
}

// ratio returns a metric's ratio to another series, taken round by round: a slow minute of the
// machine affects both.
func (s *Series) ratio(to *Series, metric string) Spread {
	if s == nil || to == nil {
		return Spread{}
	}
	var v []float64
	for i := range min(len(s.Samples), len(to.Samples)) {
		a, hasA := s.Samples[i][metric]
		b, hasB := to.Samples[i][metric]
		if hasA && hasB && b != 0 {
			v = append(v, a/b)
		}
	}
	return spreadOf(v)
}
