package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"weft/cmd/weftd/config"
	"weft/lease"
	"weft/lease/kube"
)

// scriptedCluster returns prepared answers.
type scriptedCluster struct {
	lease.Store
	starts  []error // of the first calls of NodeHints
	start   kube.NodeHints
	reports []networkReport // of WatchNetwork, which then blocks until its context is done
}

type networkReport struct {
	network lease.Network
	err     error
}

func (s *scriptedCluster) NodeHints(context.Context) (kube.NodeHints, error) {
	if len(s.starts) > 0 {
		err := s.starts[0]
		s.starts = s.starts[1:]
		return kube.NodeHints{}, err
	}
	return s.start, nil
}

func (s *scriptedCluster) SetForwarding(bool, string) {}

func (s *scriptedCluster) WatchNetwork(ctx context.Context, _ lease.Network, changed func(lease.Network, error)) error {
	for _, r := range s.reports {
		if ctx.Err() == nil {
			changed(r.network, r.err)
		}
	}
	<-ctx.Done()
	return nil
}

func kubeDaemon() *daemon {
	return &daemon{cfg: &config.Config{Underlay: config.Underlay{PublicIP: netip.MustParseAddr("192.0.2.1")}},
		log: slog.New(slog.DiscardHandler)}
}

func TestClusterPublicIPPrecedence(t *testing.T) {
	d := kubeDaemon()
	given := netip.MustParseAddr("198.51.100.1")
	published := lease.Attrs{PublicIP: netip.MustParseAddr("10.0.0.1"), PublicIPv6: netip.MustParseAddr("fd31::1")}
	s := &scriptedCluster{start: kube.NodeHints{PublicIP: given, Previous: published},
		starts: []error{errors.New("node n is not in the cluster yet")}}
	var err error
	if d.hints, err = d.awaitHints(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := d.snapshot.Load(); got == nil || !strings.Contains(got.waiting.Error(), "not in the cluster yet") {
		t.Error("status does not show the reason for waiting")
	}
	if got := d.ifaceOptions(lease.Network{}); got.PublicIP != given || got.Previous != published.PublicIP ||
		got.Previous6 != published.PublicIPv6 {
		t.Errorf("options %+v", got)
	}
	if start, err := d.awaitHints(t.Context(), struct{ lease.Store }{}); err != nil || start.PublicIP.IsValid() {
		t.Errorf("store without a cluster: %+v, %v", start, err)
	}
	d.hints = kube.NodeHints{}
	if got := d.ifaceOptions(lease.Network{}).PublicIP; got != d.cfg.Underlay.PublicIP {
		t.Errorf("without the cluster: public IP %s", got)
	}
}

func TestWatchNetwork(t *testing.T) {
	parse := func(text string) lease.Network {
		n, err := lease.ParseNetwork([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	current, other := parse(`{"Network":"10.1.0.0/16"}`), parse(`{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`)
	a := &agent{daemon: kubeDaemon(), network: current}
	a.cluster = &scriptedCluster{reports: []networkReport{{err: errors.New("not JSON")}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.watchNetwork(ctx); err != nil {
		t.Errorf("ended with %v", err)
	}
	a.cluster = &scriptedCluster{reports: []networkReport{{err: errors.New("not JSON")}, {network: other}}}
	if err := a.watchNetwork(t.Context()); !errors.Is(err, errNetworkChanged) {
		t.Errorf("ended with %v", err)
	}
	if c := a.configCondition(); !c.OK || !strings.Contains(c.Reason, "not JSON") {
		t.Errorf("after a rejected config: %+v", c)
	}
	a.cluster = &scriptedCluster{reports: []networkReport{{network: current}, {network: other}}}
	if err := a.watchNetwork(t.Context()); !errors.Is(err, errNetworkChanged) {
		t.Errorf("ended with %v", err)
	}
	if c := a.configCondition(); !c.OK || c.Reason != "" {
		t.Errorf("after the revert: %+v", c)
	}
}
