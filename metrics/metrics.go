// Package metrics says what the daemon's numbers are called: their names, help
// texts and labels, one registry, and the HTTP handler that serves them.
//
// It knows no other package of the daemon. Whoever wires the daemon fills a
// [Snapshot] of plain values, and a scrape pulls one: nothing is counted here,
// so the packet path pays for a metric only when somebody looks.
package metrics

import (
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultMaxNodes is how many nodes get counters under their own name when
// [Options.MaxNodes] is 0. Four series a node then stay below a thousand, which
// a scrape of every node of a large cluster by one Prometheus bears.
const DefaultMaxNodes = 200

// OtherNodes is the value of the node label that sums up every node without
// series of its own.
const OtherNodes = "other"

// Build is what the binary says about itself; it becomes weft_build_info.
type Build struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"`
	GoVersion string `json:"go_version"`
}

// Options are the fixed facts of one registry.
type Options struct {
	Build Build
	// Read returns the values of this moment. It is called once a scrape, never
	// twice at once. Required.
	Read func() Snapshot
	// MaxNodes bounds the nodes that are labelled by name; 0 means
	// [DefaultMaxNodes].
	MaxNodes int
	// Log is told of scrapes that fail. Required.
	Log *slog.Logger
}

// Handler returns the handler for /metrics: the daemon's own numbers, the Go
// runtime's and the process's.
func Handler(o Options) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		newCollector(o),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:      scrapeLog{o.Log},
		ErrorHandling: promhttp.ContinueOnError,
	})
}

// scrapeLog is the logger promhttp asks for.
type scrapeLog struct{ log *slog.Logger }

// Println reports one failed scrape.
func (l scrapeLog) Println(v ...any) { l.log.Warn("metrics scrape failed", "err", fmt.Sprint(v...)) }
