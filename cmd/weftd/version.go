package main

import (
	"weft/cmd/buildinfo"
	"weft/metrics"
)

// version and commit are set by the linker: -X main.version=... -X main.commit=...
var version, commit string

func build() metrics.Build { return metrics.Build(buildinfo.Read(version, commit)) }
