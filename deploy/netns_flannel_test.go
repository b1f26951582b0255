package deploy_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// flanneldEnv names the environment variable with the path of flannel's daemon.
const flanneldEnv = "WEFT_FLANNELD"

// startFlannel runs flannel's daemon on a node as flannel's manifest does.
func (c *cluster) startFlannel(t testing.TB, node *clusterNode) {
	t.Helper()
	binary := os.Getenv(flanneldEnv)
	if binary == "" {
		t.Skipf("NOT TESTED: flannel's daemon: %s is not set", flanneldEnv)
	}
	var err error
	node.daemon, err = node.Start([]string{binary, "--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081",
		"--kubeconfig-file=" + c.api.Kubeconfig, "--net-config-path=" + node.volumes["config"] + "/net-conf.json"},
		"NODE_NAME="+node.Name)
	if err != nil {
		t.Fatal(err)
	}
}

// TestNetnsFlannelPeer runs flannel's daemon on one of three nodes.
func TestNetnsFlannelPeer(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			flannelNode := c.nodes["node2"]
			c.annotateAll(t) // flannel panics on a Node without annotations
			if err := c.api.AllocateCIDRs(podNetworks(t, configMap(t, c.manifests)["net-conf.json"])); err != nil {
				t.Fatal(err)
			}
			await(t, "pod CIDRs", func() error {
				if c.nodeObject(t, flannelNode.Name).Spec.PodCIDR == "" {
					return errors.New("none yet") // flannel exits without it
				}
				return nil
			})
			for _, node := range c.nodes {
				if node == flannelNode {
					c.startFlannel(t, node)
				} else {
					c.startPod(t, node)
				}
			}
			for _, node := range c.nodes {
				c.waitReady(t, node)
			}
			c.attachPods(t)
			c.checkAnnotations(t, flannelNode, overlay) // proves the check itself: flannel passes it
			c.checkAnnotations(t, c.nodes["node1"], overlay)
			c.checkCondition(t, flannelNode, "False", "FlannelIsUp")

			// The node changes to Weft and back.
			mac := c.nodeObject(t, flannelNode.Name).Metadata.Annotations[prefix+"backend-data"]
			c.stopPod(t, flannelNode)
			c.startPod(t, flannelNode)
			c.waitReady(t, flannelNode)
			c.waitReachable(t)
			if got := c.nodeObject(t, flannelNode.Name).Metadata.Annotations[prefix+"backend-data"]; got != mac {
				t.Errorf("backend-data was %s with flannel and is %s", mac, got)
			}
			c.stopPod(t, flannelNode)
			c.startFlannel(t, flannelNode)
			c.waitReady(t, flannelNode)
			c.waitReachable(t)
		})
	}
}

// annotateAll adds an unrelated annotation to every Node.
func (c *cluster) annotateAll(t testing.TB) {
	t.Helper()
	for name := range c.nodes {
		if err := c.api.Annotate(t.Context(), name, map[string]any{"example.com/a": "b"}); err != nil {
			t.Fatal(err)
		}
	}
}

// stopPod stops a node's daemon and its installer.
func (c *cluster) stopPod(t testing.TB, node *clusterNode) {
	t.Helper()
	for _, p := range []*lab.Process{node.daemon, node.installer} {
		if p == nil {
			continue
		}
		if code, err := p.Stop(t.Context()); err != nil || code != 0 {
			t.Errorf("%s: exit status %d, %v\n%s", p.Name, code, err, strings.Join(p.Tail(5), "\n"))
		}
	}
	node.daemon, node.installer = nil, nil
	await(t, node.Name+"'s health port to be free", func() error {
		if err := c.runProbe(t.Context(), node, c.daemonContainer().LivenessProbe); err == nil {
			return errors.New("the port is still in use")
		}
		return nil
	})
}
