package kube

import (
	"log/slog"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/lease"
)

// TestPatchIsOfTheNodeThatWasRead makes the Node anew between reading its pod CIDRs and publishing a lease of them.
func TestPatchIsOfTheNodeThatWasRead(t *testing.T) {
	client := admin(t, real(t))
	noNodes(t, client)
	b := bench{client: client}
	b.create(t, newNode("n", "10.244.7.0/24"))
	s := openReal(t, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	n, err := s.own(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.create(t, newNode("n", "10.244.8.0/24"))
	if _, err := s.publish(t.Context(), n, lease.Lease{}, attrsOf(0)); err == nil || !strings.Contains(err.Error(), "uid") {
		t.Errorf("publishing on the Node that is another's: %v", err)
	}
	l, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err != nil || l.Subnet.String() != "10.244.8.0/24" {
		t.Errorf("got %+v, %v", l, err)
	}
}

// TestErrorsNameTheCall holds that what an operator reads says what was asked of whom.
func TestErrorsNameTheCall(t *testing.T) {
	c := real(t)
	noNodes(t, admin(t, c))
	s := openReal(t, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	if _, err := s.Claim(t.Context(), requestOf(t, netConf)); err == nil || !strings.Contains(err.Error(), "node n is not in the cluster yet") {
		t.Errorf("without a Node: %v", err)
	}
	if err := c.StopAPI(false); err != nil {
		t.Fatal(err)
	}
	_, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err == nil || !strings.Contains(err.Error(), "get node n") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without an API server: %v", err)
	}
	if err := c.StartAPI(); err != nil {
		t.Fatal(err)
	}
}

// TestOutageOfARealAPIServer has a Manager see one that is gone and comes back.
func TestOutageOfARealAPIServer(t *testing.T) {
	c := real(t)
	client := admin(t, c)
	noNodes(t, client)
	b := bench{client: client}
	b.create(t, newNode("n", "10.244.7.0/24"))
	s := openReal(t, Config{Node: "n", NetworkFile: writeConf(t, netConf), WriteCondition: true, Log: slog.New(slog.DiscardHandler)})
	states, _ := follow(t, s, requestOf(t, netConf))
	until(t, states, "the lease", held)
	if err := c.StopAPI(false); err != nil {
		t.Fatal(err)
	}
	away := until(t, states, "the outage", func(s lease.State) bool { return !s.Connected })
	if !away.Held || len(away.All) != 1 {
		t.Errorf("in the outage: %+v", away)
	}
	s.SetForwarding(true, "")
	if err := c.StartAPI(); err != nil {
		t.Fatal(err)
	}
	added := b.add(t)
	until(t, states, "what came after the outage", func(s lease.State) bool {
		for _, l := range s.All {
			if l.Node == added.Node {
				return held(s)
			}
		}
		return false
	})
	eventually(t, "the condition", func() bool { return conditionOf(t, client, "n").Reason == upReason })
}
