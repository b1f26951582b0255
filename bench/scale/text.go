package scale

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// percentile returns the p-th percentile; 0 without samples.
func percentile(samples []time.Duration, p int) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[min(len(s)*p/100, len(s)-1)].Round(time.Millisecond)
}

const mib = 1 << 20

// Write writes the figures as a table in Markdown.
func (f *Figures) Write(w io.Writer) error {
	t := &table{w: w}
	t.row("%s, %d nodes |", f.Backend, f.Leases)
	t.row("---|---")
	t.row("start until subnet.env / all leases routed | %.2f s / %.2f s",
		f.Start.Seconds(), f.StartAll.Seconds())
	t.row("RSS | %.0f MiB", float64(f.RSS)/mib)
	t.row("idle CPU | %.2f ms/s", 1000*f.Idle)
	t.row("new lease to first packet, median / p99 | %v / %v",
		percentile(f.New, 50), percentile(f.New, 99))
	t.row("list of all leases, keys and values | %.0f kB", float64(f.List)/1e3)
	for _, p := range f.Pages {
		t.row("%s: size / time / CPU | %.0f kB / %v / %v", p.Path, float64(p.Bytes)/1e3,
			p.Time.Round(time.Millisecond), p.CPU.Round(time.Millisecond))
	}
	for _, c := range f.Churn {
		t.row("%d changes/s (%.0f made): CPU | %.1f %% of one", c.Rate, c.Made, 100*c.CPU)
		t.row("RSS | %.0f MiB", float64(c.RSS)/mib)
		t.row("new lease to first packet, median / p99 (%d) | %v / %v",
			len(c.New), percentile(c.New, 50), percentile(c.New, 99))
		t.row("packets: to the owner / to the former owner / to a wrong node | %d / %d / %d %s",
			c.Right, c.Late, c.Wrong, c.FirstWrong)
		t.row("packets to unchanged leases: sent / lost | %d / %d", c.Sent, c.Lost)
		t.row("table equals the store's after / leases that differ | %.2f s / %d",
			c.Settle.Seconds(), c.Differing)
	}
	t.row("throughput, quiet / at %d changes/s / ratio | %.2f / %.2f Gbit/s / %.2f", floodRate,
		8*f.Flood.Quiet/1e9, 8*f.Flood.Churn/1e9, f.Flood.Churn/f.Flood.Quiet)
	t.row("restart of all other nodes in %.1f s: CPU | %.1f %% of one", f.Restart.Took.Seconds(),
		100*f.Restart.CPU)
	t.row("packets to them: sent / lost; leases that differ after it | %d / %d; %d",
		f.Restart.Sent, f.Restart.Lost, f.Restart.Differing)
	if f.Return > 0 {
		t.row("store away: CPU / first change routed after its return | %.2f ms/s / %.2f s",
			1000*f.OutageCPU, f.Return.Seconds())
	}
	return t.err
}

// table writes rows and keeps the first error.
type table struct {
	w   io.Writer
	err error
}

func (t *table) row(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, "| "+format+" |\n", args...)
	}
}
