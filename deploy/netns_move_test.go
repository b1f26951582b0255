package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"weft/deploy/lab"
)

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

// TestNetnsRollingUpdate restarts the pods node by node, as the daemon set does, under traffic.
func TestNetnsRollingUpdate(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			c.up(t)
			c.attach(t)
			from, to := c.nodes["node1"].Pods[0], c.nodes["node2"].Pods[0]
			ping, err := from.StartPing(t.Context(), to.Addr, lab.Ping{Count: -1, Interval: 5 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range c.nodes {
				before, err := os.ReadFile(m.Path("flannel/subnet.env"))
				if err != nil {
					t.Fatal(err)
				}
				c.checkConflist(t, m)
				c.stop(t, m)
				if _, err := os.Stat(filepath.Join(m.volumes["cni"], "10-flannel.conflist")); err != nil {
					t.Error(err)
				}
				c.start(t, m)
				c.ready(t, m)
				if after, err := os.ReadFile(m.Path("flannel/subnet.env")); err != nil || string(after) != string(before) {
					t.Errorf("subnet.env was %q and is %q, %v", before, after, err)
				}
			}
			r := ping.Stop()
			t.Logf("%d of %d pings lost over three restarts", r.Lost(), r.Sent)
			if r.Sent < 100 {
				t.Error("too few to tell")
			}
			if overlay != "udp" && r.Lost() > 0 {
				t.Error("the kernel carries the traffic of this backend, nothing may be lost")
			}
			c.reach(t)
		})
	}
}

// TestNetnsDualStack runs both families on the overlay of the vxlan backend.
func TestNetnsDualStack(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 2, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}})
	writeNetwork(t, c, `{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56", "Backend": {"Type": "vxlan"}}`)
	if err := c.api.AllocateCIDRs("10.244.0.0/16,fd00:10:244::/56"); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.nodes {
		c.start(t, m)
	}
	for _, m := range c.nodes {
		c.ready(t, m)
		a := c.node(t, m.Name).Metadata.Annotations
		if a[prefix+"public-ipv6"] != m.Addr6.String() || a[prefix+"backend-v6-data"] == "" || a[prefix+"public-ip"] != m.Addr.String() {
			t.Errorf("%s publishes %v", m.Name, a)
		}
	}
	c.attach(t)
	for _, m := range c.nodes {
		if !m.Pods[0].Addr6.IsValid() {
			t.Fatal(errors.New("pods have no IPv6 address"))
		}
	}
	// A change of one family alone.
	n := c.nodes["node1"]
	if err := c.api.Annotate(t.Context(), n.Name, map[string]any{prefix + "public-ipv6-overwrite": "fd31::77"}); err != nil {
		t.Fatal(err)
	}
	await(t, "node2 to hear of it", func() error {
		got := c.node(t, n.Name).Metadata.Annotations[prefix+"public-ipv6"]
		if got != "fd31::77" {
			return errors.New("node1 publishes " + got)
		}
		return nil
	})
}
