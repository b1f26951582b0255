package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

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

// stockPod is what the daemon set of flannel's own manifest runs, reduced to what a container runtime acts on. The
// containers keep the runtime's default capabilities there, and there is no /dev/net/tun.
const stockPod = `
initContainers:
- name: install-cni
  command: [/opt/bin/install-conf]
  args: [/etc/kube-flannel/cni-conf.json, /etc/cni/net.d/10-flannel.conflist]
  volumeMounts:
  - {name: cni, mountPath: /etc/cni/net.d}
  - {name: config, mountPath: /etc/kube-flannel/}
containers:
- name: kube-flannel
  command: [/opt/bin/flanneld]
  args: [--ip-masq, --kube-subnet-mgr, --healthz-port=8081]
  securityContext:
    privileged: false
    capabilities:
      add: [NET_ADMIN, NET_RAW]
  env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: EVENT_QUEUE_DEPTH, value: "5000"}
  - {name: CONT_WHEN_CACHE_NOT_READY, value: "false"}
  volumeMounts:
  - {name: run, mountPath: /run/flannel}
  - {name: config, mountPath: /etc/kube-flannel/}
`

// stockRole is what flannel's manifest lets its account do.
const stockRole = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: weft
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
`

// TestNetnsStockManifestWithOurImage runs what flannel's own manifest runs, from our image, on one node, and flannel itself,
// if it is there, on the other.
func TestNetnsStockManifestWithOurImage(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 2})
	apply(t, c.api, []byte(stockRole), false)
	c.annotateAll(t)
	for name, podCIDR := range map[string]string{"node1": "10.244.1.0/24", "node2": "10.244.2.0/24"} {
		c.renumber(t, c.nodes[name], podCIDR)
	}
	c.annotateAll(t)
	m, other := c.nodes["node1"], c.nodes["node2"]
	c.runStock(t, m)
	if os.Getenv(flanneldVariable) != "" {
		c.startFlannel(t, other)
	} else {
		t.Logf("NOT TESTED beside flannel's own daemon: %s does not name one", flanneldVariable)
		c.start(t, other)
	}
	for _, n := range c.nodes {
		c.ready(t, n)
	}
	c.attach(t)
	c.checkAnnotations(t, m, "vxlan")
	c.checkCondition(t, m, "False", "FlannelIsUp")
	c.checkConflist(t, m)
}

// runStock makes the pod of the stock manifest: the object, which the daemon asks for its node's name, and its containers.
func (c *cluster) runStock(t *testing.T, m *machine) {
	t.Helper()
	var pod corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(stockPod), &pod); err != nil {
		t.Fatal(err)
	}
	const name = "kube-flannel-ds-x"
	o, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "namespace": c.daemons.Namespace},
		"spec": map[string]any{"nodeName": m.Name, "hostNetwork": true, "serviceAccountName": "weft",
			"containers": []any{map[string]any{"name": "kube-flannel", "image": "flannel"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	object := split(t, o)[0]
	if err := c.api.Apply(t.Context(), object.path(t), object.text, false); err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{"metadata.name": name, "metadata.namespace": c.daemons.Namespace}
	installer := describe(t, pod.InitContainers[0], fields, buildImage(t), m.volumes).start(t, m.Node, c.account)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if code, err := installer.Wait(ctx); err != nil || code != 0 {
		t.Fatalf("install-conf ended with %d, %v\n%s", code, err, installer.Log())
	}
	m.daemon = describe(t, pod.Containers[0], fields, buildImage(t), m.volumes).start(t, m.Node, c.account, c.apiEnv()...)
}
