package main

import (
	"flag"
	"fmt"
	"runtime"

	"weft/cmd/buildinfo"
)

// version and commit are set by the linker: -X main.version=... -X main.commit=...
var version, commit string

// printVersion is the subcommand version. It returns the exit status.
func printVersion(args []string) int {
	if status, done := parseFlags(flag.NewFlagSet("weft version", flag.ContinueOnError),
		args); done {
		return status
	}
	b := buildinfo.Read(version, commit)
	fmt.Printf("weft %s commit %s %s %s/%s\n", b.Version, b.Commit, b.GoVersion, runtime.GOOS,
		runtime.GOARCH)
	return 0
}
