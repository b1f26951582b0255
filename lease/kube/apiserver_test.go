package kube

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/lease"
	"weft/lease/kube/testkube"
)

// TestPublishRecreatedNode recreates the Node between reading its pod CIDRs and publishing.
func TestPublishRecreatedNode(t *testing.T) {
	client := admin(t, startServer(t))
	deleteNodes(t, client)
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s := openOnServer(t, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	n, err := s.getNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	tc.create(t, newNode("n", "10.244.8.0/24"))
	if _, err := s.publish(t.Context(), n, lease.Lease{}, attrsOf(0)); err == nil ||
		!strings.Contains(err.Error(), "uid") {
		t.Errorf("publish on a recreated Node: %v", err)
	}
	l, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err != nil || l.Subnet.String() != "10.244.8.0/24" {
		t.Errorf("got %+v, %v", l, err)
	}
}

// TestListOnlyRole uses the permissions of flannel's manifests up to v0.20, which lack get.
func TestListOnlyRole(t *testing.T) {
	c := startServer(t)
	client := admin(t, c)
	deleteNodes(t, client)
	for path, object := range map[string]string{
		"/api/v1/namespaces/default/serviceaccounts/old": `{"apiVersion": "v1", "kind": "ServiceAccount",
			"metadata": {"name": "old"}}`,
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/old": `{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "old"}, "rules": [
			{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
			{"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]}`,
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/old": `{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
			"metadata": {"name": "old"},
			"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "old"},
			"subjects": [{"kind": "ServiceAccount", "name": "old", "namespace": "default"}]}`,
	} {
		if err := c.Apply(t.Context(), path, []byte(object), false); err != nil {
			t.Fatal(err)
		}
	}
	token, err := c.Token(t.Context(), "default", "old")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	b = bytes.ReplaceAll(b, []byte(testkube.AdminToken), []byte(token))
	if err := os.WriteFile(kubeconfig, b, 0o600); err != nil {
		t.Fatal(err)
	}
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s, err := Open(Config{Node: "n", NetworkFile: writeConf(t, netConf), Kubeconfig: kubeconfig,
		WriteCondition: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.NodeHints(t.Context()); err != nil {
		t.Error(err)
	}
	states, _ := startManager(t, s, requestOf(t, netConf))
	waitState(t, states, "the lease", isHeld)
	s.SetForwarding(true, "")
	eventually(t, "the condition", func() bool { return conditionOf(t, client, "n").Reason == upReason })
	tc.add(t)
	waitState(t, states, "another node", func(s lease.State) bool { return s.All.Len() == 2 })
}

// TestErrorTexts checks that errors name the failed call and its object.
func TestErrorTexts(t *testing.T) {
	c := startServer(t)
	deleteNodes(t, admin(t, c))
	s := openOnServer(t, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	if _, err := s.Claim(t.Context(), requestOf(t, netConf)); err == nil ||
		!strings.Contains(err.Error(), "node n is not in the cluster yet") {
		t.Errorf("without a Node: %v", err)
	}
	if err := c.StopAPI(false); err != nil {
		t.Fatal(err)
	}
	_, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err == nil || !strings.Contains(err.Error(), "get node n") ||
		!strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without an API server: %v", err)
	}
	if err := c.StartAPI(); err != nil {
		t.Fatal(err)
	}
}

// TestOutageAPIServer checks a Manager during and after an outage of a real API server.
func TestOutageAPIServer(t *testing.T) {
	c := startServer(t)
	client := admin(t, c)
	deleteNodes(t, client)
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s := openOnServer(t, Config{Node: "n", NetworkFile: writeConf(t, netConf), WriteCondition: true,
		Log: slog.New(slog.DiscardHandler)})
	states, _ := startManager(t, s, requestOf(t, netConf))
	waitState(t, states, "the lease", isHeld)
	if err := c.StopAPI(false); err != nil {
		t.Fatal(err)
	}
	away := waitState(t, states, "the outage", func(s lease.State) bool { return !s.Connected })
	if !away.Held || away.All.Len() != 1 {
		t.Errorf("during the outage: %+v", away)
	}
	s.SetForwarding(true, "")
	if err := c.StartAPI(); err != nil {
		t.Fatal(err)
	}
	added := tc.add(t)
	waitState(t, states, "the change after the outage", func(s lease.State) bool {
		for _, l := range lease.List(s.All) {
			if l.Node == added.Node {
				return isHeld(s)
			}
		}
		return false
	})
	eventually(t, "the condition", func() bool { return conditionOf(t, client, "n").Reason == upReason })
}
