package kube

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/lease"
)

func TestParseNetwork(t *testing.T) {
	for conf, wrong := range map[string]string{
		netConf:  "",
		dualConf: "",
		// Too small to allocate from, but the cluster allocates.
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

// networkChange holds the arguments of a call of WatchNetwork's callback.
type networkChange struct {
	network lease.Network
	err     error
}

func watchNetwork(t *testing.T, s *Store, current lease.Network) <-chan networkChange {
	s.pollInterval = 2 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	changes := make(chan networkChange, 100)
	var done sync.WaitGroup
	done.Go(func() {
		report := func(n lease.Network, err error) { changes <- networkChange{n, err} }
		if err := s.WatchNetwork(ctx, current, report); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return changes
}

func TestWatchNetwork(t *testing.T) {
	client := newFake()
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	conf := writeConf(t, netConf)
	s := openOn(t, client, Config{Node: "n", NetworkFile: conf, Log: slog.New(slog.DiscardHandler)})
	current, err := s.Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	states, _ := startManager(t, s, lease.Request{Network: current, Attrs: attrsOf(0)})
	waitState(t, states, "the lease", isHeld)
	changes := watchNetwork(t, s, current)
	steps := []struct{ text, refused, backend string }{
		{`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`, "", "vxlan"},
		{`{"Network": "10.244.`, "decode", ""},
		{`{"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan"}}`, "not inside the network 10.99.0.0/16", ""},
		{`{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}`, "no IPv6 podCIDR", ""},
		{`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`, "", "vxlan"}, // back to the config in force
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
		case got := <-changes:
			if !strings.Contains(errText(got.err), step.refused) || got.network.Backend.Type != step.backend {
				t.Errorf("%s: got error %q and backend %q", step.text, errText(got.err), got.network.Backend.Type)
			}
		case <-time.After(waitTimeout):
			t.Fatalf("%s: change not reported", step.text)
		}
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if got := <-changes; got.err == nil {
		t.Error("missing file reported without an error")
	}
}

func TestSameNetwork(t *testing.T) {
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
