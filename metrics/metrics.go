// Package metrics exports the state of the daemon to Prometheus: names, help texts and labels of
// the metrics, one registry, and the HTTP handler that serves it.
//
// The package imports no other package of the daemon and counts nothing itself. Each scrape reads
// a [Snapshot] of plain values from the caller, so the packet path pays nothing for a metric.
//
// To add a counter of the dataplane: count it in dataplane/stats.go, add a field to [Traffic], copy
// it in cmd/weftd/agent/traffic.go, and add a row to trafficMetrics in collector.go. The tests of
// the three packages and of the documentation fail until each is done.
package metrics

import (
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultMaxNodes is the number of nodes with series of their own if [Options.MaxNodes] is 0. At
// six series per node, the total stays below 1000 per daemon, so one Prometheus can scrape every
// node of a large cluster.
const DefaultMaxNodes = 128

// OtherNodes is the value of the node label for the sum of all nodes without series of their own.
const OtherNodes = "other"

// Build identifies the binary; it is exported as weft_build_info.
type Build struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"`
	GoVersion string `json:"go_version"`
}

// Options configure a [Handler].
type Options struct {
	Build Build
	// Read returns the current values. It is called once per scrape, never concurrently. Required.
	Read func() Snapshot
	// MaxNodes limits the number of nodes labelled by name; 0 means [DefaultMaxNodes].
	MaxNodes int
	// Log receives the errors of failed scrapes. Required.
	Log *slog.Logger
}

// Handler returns the handler for /metrics. It serves the metrics of the daemon, of the Go runtime
// and of the process.
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

// scrapeLog implements promhttp.Logger.
type scrapeLog struct{ log *slog.Logger }

// Println logs a failed scrape.
func (l scrapeLog) Println(v ...any) {
	l.log.Warn("metrics scrape failed", "err", fmt.Sprint(v...))
}
