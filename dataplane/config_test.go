package dataplane

import (
	"net/netip"
	"testing"

	"weft/dataplane/feature"
)

func TestParseModeAndSourceCheck(t *testing.T) {
	for _, c := range []SourceCheck{CheckKnown, CheckStrict, CheckOff} {
		if got, err := ParseSourceCheck(c.String()); err != nil || got != c {
			t.Errorf("%v: %v %v", c, got, err)
		}
	}
	for _, m := range []Mode{ModeAuto, ModeOffload, ModePortable} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%v: %v %v", m, got, err)
		}
	}
	if _, err := ParseSourceCheck("lax"); err == nil {
		t.Error("no error for an unknown source check")
	}
	if _, err := ParseMode(""); err == nil {
		t.Error("no error for an empty mode")
	}
}

func TestConfigInvalid(t *testing.T) {
	bind := netip.MustParseAddrPort("127.0.0.1:8285")
	for name, c := range map[string]Config{
		"no device":        {Bind: bind},
		"no address":       {Device: "x"},
		"negative workers": {Device: "x", Bind: bind, Workers: -1},
		"too many workers": {Device: "x", Bind: bind, Workers: MaxWorkers + 1},
		"receive port":     {Device: "x", Bind: bind, Workers: 2, SourcePort: bind.Port() - 1},
		"unknown feature":  {Device: "x", Bind: bind, DisabledFeatures: []feature.Name{"warp"}},
	} {
		if _, err := Open(c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}
