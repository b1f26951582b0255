package main

import (
	"cmp"
	"fmt"
	"runtime"
)

// version and commit are set by the linker (-X main.version=... -X main.commit=...), see the Makefile.
var version, commit string

func printVersion([]string) int {
	fmt.Printf("weft %s commit %s %s %s/%s\n", cmp.Or(version, "unknown"), cmp.Or(commit, "unknown"),
		runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return 0
}
