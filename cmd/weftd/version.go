package main

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"weft/metrics"
)

// version and commit are set by the linker (-X main.version=... -X
// main.commit=...). Without them the build's own record is used, which a plain
// `go build` in the repository or `go install` leaves.
var version, commit string

// buildInfo returns what this binary was built from.
func buildInfo() metrics.Build {
	b := metrics.Build{Version: version, Commit: commit, GoVersion: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		b = fillBuild(b, info)
	}
	b.Version = cmp.Or(b.Version, "unknown")
	b.Commit = cmp.Or(b.Commit, "unknown")
	return b
}

// fillBuild fills in what the linker was not told.
func fillBuild(b metrics.Build, info *debug.BuildInfo) metrics.Build {
	b.Version = cmp.Or(b.Version, info.Main.Version)
	var revision, modified string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			modified = s.Value
		}
	}
	if b.Commit == "" && revision != "" {
		b.Commit = revision
		if modified == "true" {
			b.Commit += "-dirty"
		}
	}
	return b
}
