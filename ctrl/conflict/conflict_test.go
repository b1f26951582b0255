package conflict

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ctrl"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func TestPrevent(t *testing.T) {
	lan := ctrl.Route{Dst: prefix("10.0.1.0/24"), Dev: "eth0", Protocol: protocolKernel}
	lan6 := ctrl.Route{Dst: prefix("fd31::/64"), Dev: "eth0", Protocol: protocolKernel, Metric: 256}
	route := func(dst string) ctrl.Route {
		return ctrl.Route{Dst: prefix(dst), Via: addr("10.0.1.1"), Dev: "eth0"}
	}
	const isIn, contains = "is the network that eth0 is in", "contains the store"
	for _, test := range []struct {
		name         string
		host         []ctrl.Route
		network      string
		target, want string
	}{
		{"elsewhere", []ctrl.Route{lan}, "10.5.0.0/16", "10.0.1.1", ""},
		{"equal", []ctrl.Route{lan}, "10.0.1.0/24", "10.0.1.1", isIn},
		{"equal, bridge", []ctrl.Route{{Dst: prefix("10.66.0.0/24"), Dev: "cni0", Protocol: protocolKernel}},
			"10.66.0.0/24", "10.0.1.1", ""},
		{"equal, IPv6", []ctrl.Route{lan6}, "fd31::/64", "fd31::1", isIn},
		{"wider than the LAN", []ctrl.Route{lan}, "10.0.0.0/16", "10.0.1.1", ""},
		{"wider, target behind the gateway", []ctrl.Route{lan, route("0.0.0.0/0")}, "10.0.0.0/16", "10.0.2.53", contains},
		{"a part of the LAN", []ctrl.Route{lan}, "10.0.1.0/25", "10.0.1.1", contains},
		{"the other part", []ctrl.Route{lan}, "10.0.1.128/25", "10.0.1.1", ""},
		{"a part of the LAN, IPv6", []ctrl.Route{lan6}, "fd31::/80", "fd31::1", contains},
		{"route to the target alone", []ctrl.Route{lan, route("10.0.2.53/32")}, "10.0.0.0/16", "10.0.2.53", ""},
		{"static route to the same destination", []ctrl.Route{lan, route("10.0.0.0/16")}, "10.0.0.0/16", "10.0.2.53", ""},
		{"one with a worse metric", []ctrl.Route{{Dst: prefix("10.0.0.0/16"), Dev: "eth0", Metric: 100}}, "10.0.0.0/16",
			"10.0.2.53", contains},
		{"better than the default metric, IPv6", []ctrl.Route{{Dst: prefix("fd31::/48"), Dev: "eth0", Metric: 512}},
			"fd31::/48", "fd31::1", ""},
		{"own route of an earlier run", []ctrl.Route{{Dst: prefix("10.0.2.0/24"), Dev: "eth0",
			Protocol: ctrl.RouteProtocol}}, "10.0.0.0/16", "10.0.2.53", contains},
		{"overlay device of an earlier run", []ctrl.Route{{Dst: prefix("10.0.2.0/24"), Dev: "flannel0"}}, "10.0.0.0/16",
			"10.0.2.53", contains},
	} {
		want := []ctrl.Route{{Dst: prefix(test.network), Dev: "flannel0"}}
		err := Prevent("eth0", test.host, want, []Target{{"store", addr(test.target)}})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

// A blackhole for this node's subnet has a metric that lets every other route win.
func TestPreventIgnoresBlackhole(t *testing.T) {
	want := []ctrl.Route{{Dst: prefix("10.0.0.0/16"), Kind: ctrl.Blackhole, Metric: 1 << 20}}
	if err := Prevent("eth0", nil, want, []Target{{"store", addr("10.0.2.53")}}); err != nil {
		t.Error(err)
	}
}

// fakeMatcher returns the same route for all addresses of a prefix.
type fakeMatcher struct {
	routes  map[string]ctrl.RouteMatch
	lookups int
}

func (f *fakeMatcher) Match(queries []ctrl.RouteQuery) []ctrl.RouteMatch {
	f.lookups += len(queries)
	matches := make([]ctrl.RouteMatch, len(queries))
	for i, q := range queries {
		matches[i].Err = errors.New("network is unreachable")
		for p, m := range f.routes {
			if prefix(p).Contains(q.Dst) {
				matches[i] = m
			}
		}
	}
	return matches
}

func (f *fakeMatcher) RulesFor(_ netip.Addr, table int) ([]int, error) {
	return map[int][]int{52: {5270, 5280}}[table], nil
}

func TestCheck(t *testing.T) {
	own := ctrl.RouteMatch{Dst: prefix("10.0.0.0/16"), Dev: "flannel0", Protocol: ctrl.RouteProtocol, Table: mainTable}
	wan := ctrl.RouteMatch{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.9.1"), Dev: "eth0", Table: mainTable}
	f := &fakeMatcher{routes: map[string]ctrl.RouteMatch{
		"10.0.3.0/24":     own,
		"10.0.9.0/24":     {Dst: prefix("10.0.9.0/24"), Dev: "cni0", Protocol: protocolKernel},
		"198.51.100.0/24": wan,
		"10.1.1.0/24":     own,
		"10.1.2.0/24":     {Dst: prefix("10.1.2.1/32"), Dev: "cni0", Local: true, Table: localTable},
		"10.1.3.0/24":     {Dst: prefix("10.1.0.0/16"), Dev: "tun9", Table: 52},
		"10.1.4.0/24":     {Dst: prefix("10.1.4.1/32"), Via: addr("198.51.100.4"), Dev: "eth0"}, // a kernel without the details
	}}
	peer := func(name, public, subnet string) Peer { return Peer{name, addr(public), prefix(subnet)} }
	q := Query{
		Subnets: []netip.Prefix{prefix("10.0.9.0/24")}, Devices: []string{"flannel0"},
		Targets: []Target{{"store", addr("10.0.3.53")}, {"gateway", addr("203.0.113.1")}},
		Peers: func() []Peer {
			return []Peer{
				peer("cut", "10.0.3.1", "10.1.9.0/24"), peer("cut", "10.0.3.1", "10.1.10.0/24"),
				peer("well", "198.51.100.1", "10.1.1.0/24"), peer("bridge", "198.51.100.2", "10.1.2.0/24"),
				peer("rule", "198.51.100.3", "10.1.3.0/24"), peer("old", "198.51.100.4", "10.1.4.0/24"),
				peer("none", "198.51.100.5", "10.1.5.0/24"),
			}
		},
	}
	c := NewChecker(slog.New(slog.DiscardHandler))
	c.Set(q)
	got, err := c.check(t.Context(), func() (matcher, error) { return f, nil })
	if err != nil {
		t.Fatal(err)
	}
	const cut = "packets to node cut (10.0.3.1) are taken by this daemon's own route 10.0.0.0/16 dev flannel0"
	want := &Result{
		Taken: []string{
			"packets to store (10.0.3.53) are taken by this daemon's own route 10.0.0.0/16 dev flannel0", cut,
			"gateway to node well (10.0.9.1) is in the subnet of this node's pods (route 10.0.9.0/24 dev cni0)",
		},
		Cut: map[netip.Prefix]string{prefix("10.1.9.0/24"): cut, prefix("10.1.10.0/24"): cut},
		Diverted: map[netip.Prefix]string{
			prefix("10.1.2.0/24"): "cni0 on this node has its address 10.1.2.1: delete the address",
			prefix("10.1.3.0/24"): "packets to its pods leave by another program's route 10.1.0.0/16 dev tun9 table 52 (ip rule 5270)",
			prefix("10.1.5.0/24"): "no route to its pods: network is unreachable",
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	c.store(got)
	first := c.Result()
	again, _ := c.check(t.Context(), func() (matcher, error) { return f, nil })
	if c.store(again); first != got || c.Result() != first {
		t.Error("an equal result replaced the last one")
	}
}

// A check of many peers is spread over time, and ends with its context.
func TestCheckInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeMatcher{}
		c := NewChecker(slog.New(slog.DiscardHandler))
		c.Set(Query{Peers: func() []Peer { return make([]Peer, 5*peersPerStep-1) }})
		matchers := 0
		newMatcher := func() (matcher, error) { matchers++; return f, nil }
		start := time.Now()
		if _, err := c.check(t.Context(), newMatcher); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 4*stepInterval || matchers != 5 || f.lookups > 2*5*peersPerStep {
			t.Errorf("%d steps, %d lookups in %v", matchers, f.lookups, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), stepInterval/2)
		defer cancel()
		if _, err := c.check(ctx, newMatcher); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
