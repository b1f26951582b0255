package deploy_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// flanneldVariable names the environment variable with the path of flannel's daemon.
const flanneldVariable = "WEFT_FLANNELD"

// startFlannel runs flannel's daemon on a node as its own manifest does.
func (c *cluster) startFlannel(t testing.TB, m *machine) {
	t.Helper()
	binary := os.Getenv(flanneldVariable)
	if binary == "" {
		t.Skipf("NOT TESTED beside flannel's own daemon: %s does not name one", flanneldVariable)
	}
	var err error
	m.daemon, err = m.Start([]string{binary, "--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081",
		"--kubeconfig-file=" + c.api.Kubeconfig, "--net-config-path=" + m.volumes["config"] + "/net-conf.json"},
		"NODE_NAME="+m.Name)
	if err != nil {
		t.Fatal(err)
	}
}

// TestNetnsBesideFlannel runs flannel's own daemon on one node of three.
func TestNetnsBesideFlannel(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			theirs := c.nodes["node2"]
			c.annotateAll(t) // without any annotation flannel panics
			if err := c.api.AllocateCIDRs(configNetwork(t, configMap(t, c.manifests)["net-conf.json"])); err != nil {
				t.Fatal(err)
			}
			await(t, "pod CIDRs", func() error {
				if c.node(t, theirs.Name).Spec.PodCIDR == "" {
					return errors.New("none yet") // without it flannel ends
				}
				return nil
			})
			for _, m := range c.nodes {
				if m == theirs {
					c.startFlannel(t, m)
				} else {
					c.start(t, m)
				}
			}
			for _, m := range c.nodes {
				c.ready(t, m)
			}
			c.attach(t)
			c.checkAnnotations(t, theirs, overlay) // the check is right: flannel passes it
			c.checkAnnotations(t, c.nodes["node1"], overlay)
			c.checkCondition(t, theirs, "False", "FlannelIsUp")

			// The node changes hands, and back.
			mac := c.node(t, theirs.Name).Metadata.Annotations[prefix+"backend-data"]
			c.stop(t, theirs)
			c.start(t, theirs)
			c.ready(t, theirs)
			c.reach(t)
			if got := c.node(t, theirs.Name).Metadata.Annotations[prefix+"backend-data"]; got != mac {
				t.Errorf("backend-data was %s under flannel and is %s", mac, got)
			}
			c.stop(t, theirs)
			c.startFlannel(t, theirs)
			c.ready(t, theirs)
			c.reach(t)
		})
	}
}

// annotateAll gives every Node an annotation of somebody else's.
func (c *cluster) annotateAll(t testing.TB) {
	t.Helper()
	for name := range c.nodes {
		if err := c.api.Annotate(t.Context(), name, map[string]any{"example.com/a": "b"}); err != nil {
			t.Fatal(err)
		}
	}
}

// stop ends a node's daemon and its installer.
func (c *cluster) stop(t testing.TB, m *machine) {
	t.Helper()
	for _, p := range []*lab.Process{m.daemon, m.installer} {
		if p == nil {
			continue
		}
		if code, err := p.Stop(t.Context()); err != nil || code != 0 {
			t.Errorf("%s ended with %d, %v\n%s", p.Name, code, err, strings.Join(p.Tail(5), "\n"))
		}
	}
	m.daemon, m.installer = nil, nil
	await(t, m.Name+"'s health port to be free", func() error {
		if err := c.probe(t.Context(), m, c.weft().LivenessProbe); err == nil {
			return fmt.Errorf("something answers still")
		}
		return nil
	})
}
