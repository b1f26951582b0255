package metrics

func ipsecMetrics() []metric {
	return []metric{
		{Info{"weft_ipsec_associations",
			"IPsec security associations with other nodes, by state.",
			gauge, []string{"state"}},
			func(s *scrape) []sample {
				if s.IPsec == nil {
					return nil
				}
				return []sample{
					{float64(s.IPsec.Established), []string{"established"}},
					{float64(s.IPsec.Missing), []string{"missing"}},
				}
			}},
		{Info{"weft_ipsec_charon_restarts_total",
			"Times that charon ended and was started again.",
			counter, nil},
			func(s *scrape) []sample {
				if s.IPsec == nil {
					return nil
				}
				return []sample{{value: float64(s.IPsec.Restarts)}}
			}},
	}
}
