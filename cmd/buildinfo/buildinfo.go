// Package buildinfo identifies a binary: its version, commit and Go version.
package buildinfo

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// Info identifies a binary.
type Info struct {
	Version, Commit string // "unknown" if not recorded
	GoVersion       string
}

// Read returns the info of the running binary. version and commit are those set by the linker, see
// the Makefile. If they are empty, it uses the information that the go command embeds in a binary
// built in the repository or by go install.
func Read(version, commit string) Info {
	i := Info{Version: version, Commit: commit, GoVersion: runtime.Version()}
	if embedded, ok := debug.ReadBuildInfo(); ok {
		i = fill(i, embedded)
	}
	i.Version = cmp.Or(i.Version, "unknown")
	i.Commit = cmp.Or(i.Commit, "unknown")
	return i
}

// fill sets the fields that are empty.
func fill(i Info, embedded *debug.BuildInfo) Info {
	i.Version = cmp.Or(i.Version, embedded.Main.Version)
	var revision, modified string
	for _, s := range embedded.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			modified = s.Value
		}
	}
	if i.Commit == "" && revision != "" {
		i.Commit = revision
		if modified == "true" {
			i.Commit += "-dirty"
		}
	}
	return i
}
