package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

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

// flannelPodSpec is the pod of the DaemonSet in flannel's manifest, reduced to the fields that
// matter to a container runtime. Its containers keep the runtime's default capabilities and have no
// /dev/net/tun.
const flannelPodSpec = `
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

// flannelRole is the role of the account in flannel's manifest.
const flannelRole = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: weft
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
`

// TestNetnsFlannelManifest runs the pod of flannel's manifest from Weft's image on one node and, if
// available, flannel's daemon on the other.
func TestNetnsFlannelManifest(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 2})
	apply(t, c.api, []byte(flannelRole), false)
	c.annotateAll(t)
	for name, podCIDR := range map[string]string{"node1": "10.244.1.0/24", "node2": "10.244.2.0/24"} {
		c.recreateNode(t, c.nodes[name], podCIDR)
	}
	c.annotateAll(t)
	node, other := c.nodes["node1"], c.nodes["node2"]
	c.startFlannelPod(t, node)
	if os.Getenv(flanneldEnv) != "" {
		c.startFlannel(t, other)
	} else {
		t.Logf("NOT TESTED: flannel's daemon as peer: %s is not set", flanneldEnv)
		c.startPod(t, other)
	}
	for _, n := range c.nodes {
		c.waitReady(t, n)
	}
	c.attachPods(t)
	c.checkAnnotations(t, node, "vxlan")
	c.checkCondition(t, node, "False", "FlannelIsUp")
	c.checkConflist(t, node)
}

// startFlannelPod creates the Pod object, from which the daemon reads its node's name, and runs its
// containers.
func (c *cluster) startFlannelPod(t *testing.T, node *clusterNode) {
	t.Helper()
	var pod corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(flannelPodSpec), &pod); err != nil {
		t.Fatal(err)
	}
	const name = "kube-flannel-ds-x"
	o, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "namespace": c.daemons.Namespace},
		"spec": map[string]any{"nodeName": node.Name, "hostNetwork": true, "serviceAccountName": "weft",
			"containers": []any{map[string]any{"name": "kube-flannel", "image": "flannel"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	object := parseManifests(t, o)[0]
	if err := c.api.Apply(t.Context(), object.apiPath(t), object.text, false); err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{"metadata.name": name, "metadata.namespace": c.daemons.Namespace}
	installer := newContainer(t, pod.InitContainers[0], fields, buildImageDir(t), node.volumes).start(t, node.Node,
		c.account)
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if code, err := installer.Wait(ctx); err != nil || code != 0 {
		t.Fatalf("install-conf: exit status %d, %v\n%s", code, err, installer.Log())
	}
	node.daemon = newContainer(t, pod.Containers[0], fields, buildImageDir(t), node.volumes).start(t, node.Node,
		c.account,
		c.apiServerEnv()...)
}
