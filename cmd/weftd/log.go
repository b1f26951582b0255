package main

import (
	"io"
	"log/slog"
	"strings"

	"weft/cmd/weftd/config"
)

// newLogger returns a logger that writes to w in the configured format.
func newLogger(c config.Log, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level()}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// logIgnored warns about flags and variables without effect.
func logIgnored(c *config.Config, log *slog.Logger) {
	if len(c.Ignored) > 0 {
		log.Warn("flags without effect: the log goes to stderr",
			"flags", strings.Join(c.Ignored, " "))
	}
	for _, u := range c.Unknown {
		log.Warn("environment variable sets no flag", "variable", u.Name, "nearest", u.Nearest)
	}
}
