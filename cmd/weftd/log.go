package main

import (
	"io"
	"log/slog"
)

// newLogger returns the logger that the flags ask for, writing to w.
func newLogger(c *config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.level()}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// noteFlags says which flags were accepted for flannel's sake only, and what others
// give up.
func noteFlags(c *config, log *slog.Logger) {
	for _, f := range []struct{ name, val string }{{"vmodule", c.vmodule}, {"log_backtrace_at", c.backtraceAt}} {
		if f.val != "" {
			log.Warn("flag has no effect", "flag", "--"+f.name)
		}
	}
	for _, note := range ruleNotes(c) {
		log.Info("packet filter", "note", note)
	}
}
