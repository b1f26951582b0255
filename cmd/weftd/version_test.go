package main

import (
	"runtime/debug"
	"strings"
	"testing"

	"weft/metrics"
)

func TestBuildInfo(t *testing.T) {
	record := func(modified string) *debug.BuildInfo {
		return &debug.BuildInfo{
			Main:     debug.Module{Version: "v1.2.3"},
			Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: modified}},
		}
	}
	tests := []struct {
		linker metrics.Build
		info   *debug.BuildInfo
		want   metrics.Build
	}{
		{metrics.Build{}, record("false"), metrics.Build{Version: "v1.2.3", Commit: "abc"}},
		{metrics.Build{}, record("true"), metrics.Build{Version: "v1.2.3", Commit: "abc-dirty"}},
		{metrics.Build{Version: "v9", Commit: "def"}, record("true"), metrics.Build{Version: "v9", Commit: "def"}},
		{metrics.Build{}, &debug.BuildInfo{}, metrics.Build{}},
	}
	for _, test := range tests {
		if got := fillBuild(test.linker, test.info); got != test.want {
			t.Errorf("%+v with %+v: got %+v, want %+v", test.linker, test.info, got, test.want)
		}
	}
	if b := buildInfo(); b.Version == "" || b.Commit == "" || !strings.HasPrefix(b.GoVersion, "go") {
		t.Errorf("got %+v", b)
	}
}
