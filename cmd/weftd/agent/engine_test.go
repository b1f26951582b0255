package agent

import (
	"net/netip"
	"reflect"
	"testing"

	"weft/cmd/weftd/config"
	"weft/ctrl/backend"
	"weft/ctrl/underlay"
	"weft/dataplane"
	"weft/dataplane/feature"
)

func TestEngineConfig(t *testing.T) {
	cfg, err := config.Parse([]string{"--workers=3", "--source-port=9000", "--spin", "--outer-ecn", "--outer-dscp", "--fast-path=require",
		"--source-check=strict", "--engine=portable", "--engine-without=udp-gso"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: cfg, limits: limits{Descriptors: 1 << 20}.withSizes(cfg.Engine, 1)}
	got := d.engineConfig(backend.Advertisement{Listen: netip.MustParseAddrPort("192.0.2.1:8285"), MTU: 1472},
		backend.LocalNode{Iface: underlay.Iface{Name: "eth0"}})
	want := dataplane.Config{
		Device: "flannel%d", Bind: netip.MustParseAddrPort("192.0.2.1:8285"), MTU: 1472, Workers: 3, SourcePort: 9000,
		Spin: true, FastPath: dataplane.FastPathRequire, Underlay: "eth0", ECN: true, DSCP: true, SourceCheck: dataplane.CheckStrict, Mode: dataplane.ModePortable,
		DisabledFeatures: []feature.Name{feature.GSO}, AwaitNodes: nodesTimeout,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	cfg, err = config.Parse([]string{"--spin=false"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg, d.limits = cfg, limits{Descriptors: 1 << 20}.withSizes(cfg.Engine, 1)
	if d.engineConfig(backend.Advertisement{}, backend.LocalNode{}).Spin {
		t.Error("spins with --spin=false")
	}
}
