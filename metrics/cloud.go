package metrics

import (
	"maps"
	"slices"
)

func cloudMetrics() []metric {
	return []metric{
		{Info{"weft_cloud_calls_total",
			"Calls of the cloud's API and metadata service.",
			counter, []string{"provider", "call"}},
			func(s *scrape) []sample {
				return each(s.Cloud, func(c CloudCall) sample {
					return sample{float64(c.Count), []string{c.Provider, c.Call}}
				})
			}},
		{Info{"weft_cloud_errors_total",
			"Failed calls of the cloud's API and metadata service, by kind of error.",
			counter, []string{"provider", "call", "kind"}},
			func(s *scrape) []sample {
				var samples []sample
				for _, c := range s.Cloud {
					for _, kind := range slices.Sorted(maps.Keys(c.Errors)) {
						samples = append(samples, sample{float64(c.Errors[kind]),
							[]string{c.Provider, c.Call, kind}})
					}
				}
				return samples
			}},
	}
}
