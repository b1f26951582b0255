package kube

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/lease"
)

func TestNetworkNeedsARangeForEachFamily(t *testing.T) {
	for conf, wrong := range map[string]string{
		netConf:  "",
		dualConf: "",
		// Too small for an allocator, which there is none of here.
		`{"Network": "10.244.0.0/30"}`: "",
		`{}`:                           "correct Network parameter",
		`{"Network": "10.244.0.0/16", "EnableIPv6": true}`:                      "correct IPv6Network parameter",
		`{"EnableIPv4": false}`:                                                 "none defined stack",
		`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48"}`: "",
		`{"Network": 7}`: "decode",
		``:               "decode",
	} {
		_, err := parseNetwork([]byte(conf), nil)
		if text := errText(err); !strings.Contains(text, wrong) || wrong == "" && text != "" {
			t.Errorf("%s: %q, want %q", conf, text, wrong)
		}
	}
}

// told is what WatchNetwork said.
type told struct {
	network lease.Network
	err     error
}

func watchNetwork(t *testing.T, s *Store, current lease.Network) <-chan told {
	s.poll = 2 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	said := make(chan told, 100)
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.WatchNetwork(ctx, current, func(n lease.Network, err error) { said <- told{n, err} }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return said
}

func TestChangedNetworkConfigIsToldOrRefused(t *testing.T) {
	client := newFake()
	b := bench{client: client}
	b.create(t, newNode("n", "10.244.7.0/24"))
	conf := writeConf(t, netConf)
	s := openOn(t, client, Config{Node: "n", NetworkFile: conf, Log: slog.New(slog.DiscardHandler)})
	current, err := s.Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	states, _ := follow(t, s, lease.Request{Network: current, Attrs: attrsOf(0)})
	until(t, states, "the lease", held)
	said := watchNetwork(t, s, current)
	steps := []struct{ text, refused, backend string }{
		{`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`, "", "vxlan"},
		{`{"Network": "10.244.`, "decode", ""},
		{`{"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan"}}`, "not inside the network 10.99.0.0/16", ""},
		{`{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}`, "no IPv6 podCIDR", ""},
		{`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`, "", "vxlan"}, // back to what is in force
		{`{"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}`, "", "vxlan"},
	}
	for _, step := range steps {
		if err := os.WriteFile(conf+".new", []byte(step.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(conf+".new", conf); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-said:
			if !strings.Contains(errText(got.err), step.refused) || got.network.Backend.Type != step.backend {
				t.Errorf("%s: told %q and backend %q", step.text, errText(got.err), got.network.Backend.Type)
			}
		case <-time.After(patience):
			t.Fatalf("%s: nothing was told", step.text)
		}
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if got := <-said; got.err == nil {
		t.Error("the missing file is no trouble")
	}
}

// TestRosterFollowsTheNetwork holds that a wider network brings in the nodes that were outside of the old one.
func TestRosterFollowsTheNetwork(t *testing.T) {
	r := newRoster(defaultNames(t), slog.New(slog.DiscardHandler), nil)
	r.setNetwork(network(t, netConf))
	inside := says(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.1"}, "10.244.1.0/24")
	outside := says(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.2"}, "10.245.1.0/24")
	inside.Name, outside.Name = "inside", "outside"
	if err := r.Replace([]any{inside, outside}, "7"); err != nil {
		t.Fatal(err)
	}
	if got := r.look().snapshot.Leases; len(got) != 1 || got[0].Node != "inside" {
		t.Errorf("got %+v", got)
	}
	r.setNetwork(network(t, `{"Network": "10.244.0.0/15"}`))
	if got := r.look().snapshot.Leases; len(got) != 2 || got[1].Subnet != netip.MustParsePrefix("10.245.1.0/24") {
		t.Errorf("got %+v", got)
	}
}

// TestRosterTakesListsWhole holds what a list after a long outage says without a word: what is not in it is gone.
func TestRosterTakesListsWhole(t *testing.T) {
	r := newRoster(defaultNames(t), slog.New(slog.DiscardHandler), nil)
	r.setNetwork(network(t, netConf))
	a := says(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.1"}, "10.244.1.0/24")
	b := says(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.2"}, "10.244.2.0/24")
	a.Name, b.Name = "a", "b"
	for _, list := range [][]any{{a, b}, {b}, {}, {a}} {
		if err := r.Replace(list, "7"); err != nil {
			t.Fatal(err)
		}
		got := r.look()
		if !got.synced || len(got.snapshot.Leases) != len(list) || got.snapshot.Revision != 7 {
			t.Errorf("after a list of %d: %+v", len(list), got.snapshot)
		}
	}
	if err := r.Replace([]any{"no node"}, "8"); err == nil {
		t.Error("a list of something else was taken")
	}
}

func TestSameNetworkInOtherWords(t *testing.T) {
	plain := network(t, netConf)
	for text, same := range map[string]bool{
		netConf: true,
		"{ \"Backend\":{\"Type\" :\n \"udp\"}, \"Network\":\"10.244.7.0/16\" }":     true,
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}`:    false,
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}, "SubnetLen": 25}`: false,
		`{"Network": "10.244.0.0/16"}`:                                              false,
	} {
		if got := SameNetwork(plain, network(t, text)); got != same {
			t.Errorf("%s: same %v, want %v", text, got, same)
		}
	}
}
