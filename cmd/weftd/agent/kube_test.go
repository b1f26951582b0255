package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/lease"
	"weft/lease/kube"
)

// scripted is a cluster that says what a test wrote down.
type scripted struct {
	lease.Store
	starts []error // of the first calls of NodeHints
	start  kube.NodeHints
	says   []told // by WatchNetwork, which then goes on until its context ends
}

type told struct {
	network lease.Network
	err     error
}

func (s *scripted) NodeHints(context.Context) (kube.NodeHints, error) {
	if len(s.starts) > 0 {
		err := s.starts[0]
		s.starts = s.starts[1:]
		return kube.NodeHints{}, err
	}
	return s.start, nil
}

func (s *scripted) SetForwarding(bool, string) {}

func (s *scripted) WatchNetwork(ctx context.Context, _ lease.Network, changed func(lease.Network, error)) error {
	for _, t := range s.says {
		if ctx.Err() == nil {
			changed(t.network, t.err)
		}
	}
	<-ctx.Done()
	return nil
}

func kubeDaemon() *weftd {
	return &weftd{cfg: &config.Config{Underlay: config.Underlay{PublicIP: netip.MustParseAddr("192.0.2.1")}}, log: slog.New(slog.DiscardHandler)}
}

func TestTheClustersPublicAddressWins(t *testing.T) {
	d := kubeDaemon()
	given := netip.MustParseAddr("198.51.100.1")
	s := &scripted{start: kube.NodeHints{PublicIP: given}, starts: []error{errors.New("node n is not in the cluster yet")}}
	var err error
	if d.start, err = d.awaitStart(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := d.seen.Load(); got == nil || !strings.Contains(got.waiting.Error(), "not in the cluster yet") {
		t.Error("what was waited for was not shown")
	}
	if got := d.ifaceOptions(lease.Network{}).PublicIP; got != given {
		t.Errorf("public IP %s", got)
	}
	if start, err := d.awaitStart(t.Context(), struct{ lease.Store }{}); err != nil || start.PublicIP.IsValid() {
		t.Errorf("a store that is no cluster says %+v, %v", start, err)
	}
	d.start = kube.NodeHints{}
	if got := d.ifaceOptions(lease.Network{}).PublicIP; got != d.cfg.Underlay.PublicIP {
		t.Errorf("without the cluster's: public IP %s", got)
	}
}

func TestChangedNetworkEndsTheRunOrIsRefused(t *testing.T) {
	parse := func(text string) lease.Network {
		n, err := lease.ParseNetwork([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	current, other := parse(`{"Network":"10.1.0.0/16"}`), parse(`{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`)
	n := &node{weftd: kubeDaemon(), network: current}
	n.cluster = &scripted{says: []told{{err: errors.New("not JSON")}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.followNetwork(ctx); err != nil {
		t.Errorf("ended with %v", err)
	}
	n.cluster = &scripted{says: []told{{err: errors.New("not JSON")}, {network: other}}}
	if err := n.followNetwork(t.Context()); !errors.Is(err, errNetworkChanged) {
		t.Errorf("ended with %v", err)
	}
	if c := n.configCondition(); !c.OK || !strings.Contains(c.Reason, "not JSON") {
		t.Errorf("while a config is refused: %+v", c)
	}
	n.cluster = &scripted{says: []told{{network: current}, {network: other}}}
	if err := n.followNetwork(t.Context()); !errors.Is(err, errNetworkChanged) {
		t.Errorf("ended with %v", err)
	}
	if c := n.configCondition(); !c.OK || c.Reason != "" {
		t.Errorf("with the config in force: %+v", c)
	}
}

func TestPublishedTunnelAddressIsKept(t *testing.T) {
	mac, err := ctrl.ParseMAC("0a:00:00:00:00:01")
	if err != nil {
		t.Fatal(err)
	}
	vxlan := lease.Attrs{BackendType: "vxlan", BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}`)}
	other := lease.Attrs{BackendType: "host-gw", BackendData: vxlan.BackendData}
	broken := lease.Attrs{BackendType: "vxlan", BackendData: json.RawMessage(`{"VtepMAC":7}`), BackendV6Data: json.RawMessage(`{"VtepMAC":"x"}`)}
	present := ctrl.MAC{2, 2, 2, 2, 2, 2}
	for _, test := range []struct {
		name      string
		have      ctrl.MAC
		before    lease.Attrs
		want, six ctrl.MAC
	}{
		{"no device", ctrl.MAC{}, vxlan, mac, ctrl.MAC{}},
		{"a device is there", present, vxlan, present, ctrl.MAC{}},
		{"another backend's data", ctrl.MAC{}, other, ctrl.MAC{}, ctrl.MAC{}},
		{"unreadable", ctrl.MAC{}, broken, ctrl.MAC{}, ctrl.MAC{}},
		{"nothing", ctrl.MAC{}, lease.Attrs{}, ctrl.MAC{}, ctrl.MAC{}},
		{"IPv6", ctrl.MAC{}, lease.Attrs{BackendType: "vxlan", BackendV6Data: vxlan.BackendData}, ctrl.MAC{}, mac},
	} {
		host := ctrl.Self{VTEP: test.have}
		if keepVTEP(&host, test.before); host.VTEP != test.want || host.VTEP6 != test.six {
			t.Errorf("%s: %v and %v", test.name, host.VTEP, host.VTEP6)
		}
	}
}
