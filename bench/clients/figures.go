package clients

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// Row has the figures of one step. Those of etcd are per client, except its memory.
type Row struct {
	Step      string  `json:"step"`
	Seconds   float64 `json:"seconds"`   // duration of the step
	Requests  float64 `json:"requests"`  // gRPC messages to etcd
	Responses float64 `json:"responses"` // gRPC messages from etcd
	In        float64 `json:"bytesIn"`   // received by etcd
	Out       float64 `json:"bytesOut"`  // sent by etcd
	CPU       float64 `json:"cpuSeconds"`
	RSS       float64 `json:"rssBytes"` // of etcd, after the step
}

// WriteTable writes the rows of a measurement as a Markdown table.
func WriteTable(w io.Writer, o Options, rows []Row) error {
	_, err := fmt.Fprintf(w, "| %d clients, %d other leases | time | requests | responses | KiB in | "+
		"KiB out | etcd CPU ms | etcd RSS MiB |\n|---|---|---|---|---|---|---|---|\n",
		o.Clients, o.Leases)
	for _, r := range rows {
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "| %s | %.1f s | %.1f | %.1f | %.1f | %.1f | %.2f | %.0f |\n",
			r.Step, r.Seconds, r.Requests, r.Responses, r.In/1024, r.Out/1024, r.CPU*1000,
			r.RSS/(1<<20))
	}
	return err
}

// row returns the figures of a step of n clients.
func (u usage) row(step string, took time.Duration, clients int) Row {
	n := float64(clients)
	return Row{Step: step, Seconds: took.Seconds(), Requests: u.requests / n,
		Responses: u.responses / n, In: u.in / n, Out: u.out / n, CPU: u.cpu.Seconds() / n,
		RSS: u.rss}
}

// percentile returns the p-th percentile; 0 without samples.
func percentile(samples []time.Duration, p int) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[min(len(s)*p/100, len(s)-1)].Round(time.Millisecond)
}
