package main

import (
	"io"
	"log/slog"

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

// logIgnoredFlags warns about flags that are accepted for compatibility with flannel only.
func logIgnoredFlags(c config.Log, log *slog.Logger) {
	for _, f := range []struct{ name, val string }{
		{"vmodule", c.VModule}, {"log_backtrace_at", c.BacktraceAt},
	} {
		if f.val != "" {
			log.Warn("flag has no effect", "flag", "--"+f.name)
		}
	}
}
