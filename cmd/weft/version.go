package main

import (
	"cmp"
	"flag"
	"fmt"
	"runtime"
)

// version and commit are set by the linker (-X main.version=... -X main.commit=...), see the
// Makefile.
var version, commit string

func printVersion(args []string) int {
	if status, done := parseFlags(flag.NewFlagSet("weft version", flag.ContinueOnError), args); done {
		return status
	}
	fmt.Printf("weft %s commit %s %s %s/%s\n", cmp.Or(version, "unknown"), cmp.Or(commit, "unknown"),
		runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return 0
}
