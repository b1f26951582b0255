package agent

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"weft/cmd/control"
	"weft/ctrl/backend"
	"weft/dataplane/probe"
	"weft/lease"
	"weft/metrics"
)

func TestProbeTargets(t *testing.T) {
	dual := testLease("d", "10.5.2.0/24", "192.0.2.2")
	dual.Subnet6, dual.PublicIPv6 = prefix("fd00:2::/64"), addr("2001:db8::2")
	six := lease.Lease{Node: "s", Subnet6: prefix("fd00:6::/64"), Attrs: lease.Attrs{PublicIPv6: addr("2001:db8::6")}}
	gone := testLease("g", "10.5.3.0/24", "192.0.2.3")
	view := &peerView{leases: lease.NewSet(dual, six, gone), unplanned: reasons{gone.Subnet: "no"}}
	for _, test := range []struct {
		name string
		adv  backend.Advertisement
		want []probe.Target
	}{
		{"tunnel", backend.Advertisement{Type: "vxlan"}, []probe.Target{
			{ID: six.Subnet6, Addr6: addr("fd00:6::")},
			{ID: dual.Subnet, Addr: addr("10.5.2.0"), Addr6: addr("fd00:2::")}}},
		{"no tunnel", backend.Advertisement{Type: "host-gw"}, []probe.Target{
			{ID: six.Subnet6, Addr6: six.PublicIPv6},
			{ID: dual.Subnet, Addr: dual.PublicIP, Addr6: dual.PublicIPv6}}},
		{"IPv6 off", backend.Advertisement{Type: "vxlan", IPv6Off: "small MTU"}, []probe.Target{
			{ID: dual.Subnet, Addr: addr("10.5.2.0")}}},
	} {
		if got := slices.Collect(probeTargets(test.adv, view)); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

func TestProbeMetrics(t *testing.T) {
	if m := probeMetrics(control.Status{}); m != nil {
		t.Errorf("without a probe: %+v", m)
	}
	got := probeMetrics(control.Status{
		Probe: &control.Probe{Answered: 3, Lost: 4},
		Nodes: []control.Node{{Name: "unmeasured"}, {Name: "n",
			Path:  &control.Path{Sent: 4, Lost: 1, RTT: 1, RTTMedian: 0.5, MTU: 1472, MaxMTU: 1500},
			Path6: &control.Path{}}},
	})
	want := &metrics.Probe{Answered: 3, Lost: 4, Paths: []metrics.ProbePath{
		{Node: "n", Loss: 0.25, RTT: 500 * time.Millisecond, MTU: 1472, MaxMTU: 1500}, {Node: "n"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
