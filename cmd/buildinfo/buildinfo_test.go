package buildinfo

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestFill(t *testing.T) {
	embedded := func(modified string) *debug.BuildInfo {
		return &debug.BuildInfo{
			Main:     debug.Module{Version: "v1.2.3"},
			Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: modified}},
		}
	}
	tests := []struct {
		linked Info
		info   *debug.BuildInfo
		want   Info
	}{
		{Info{}, embedded("false"), Info{Version: "v1.2.3", Commit: "abc"}},
		{Info{}, embedded("true"), Info{Version: "v1.2.3", Commit: "abc-dirty"}},
		{Info{Version: "v9", Commit: "def"}, embedded("true"), Info{Version: "v9", Commit: "def"}},
		{Info{}, &debug.BuildInfo{}, Info{}},
	}
	for _, test := range tests {
		if got := fill(test.linked, test.info); got != test.want {
			t.Errorf("%+v with %+v: got %+v, want %+v", test.linked, test.info, got, test.want)
		}
	}
}

func TestRead(t *testing.T) {
	if i := Read("v1", ""); i.Version != "v1" || i.Commit == "" || !strings.HasPrefix(i.GoVersion, "go") {
		t.Errorf("got %+v", i)
	}
}
