package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"weft/deploy/lab"
)

// imageEnv names the environment variable with the directory of the image's files.
const imageEnv = "WEFT_IMAGE"

// fullImageDir returns the directory of the image with a shell and tools, or skips the test.
func fullImageDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(imageEnv)
	if dir == "" {
		t.Skipf("NOT TESTED: image: %s is not set", imageEnv)
	}
	return dir
}

// manifest is the pod of a DaemonSet for flannel's image, reduced to the fields that matter to a
// container runtime. Its containers keep the runtime's default capabilities and have no
// /dev/net/tun.
type manifest struct {
	name  string
	image func(testing.TB) string // returns the directory of the image that it needs
	role  string                  // the rules of its account for nodes
	pod   string
	probe []string // of the daemon's container; empty: HTTP
}

// flannelEnv is the environment that every manifest of flannel sets.
const flannelEnv = `
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}`

// copyPlugin and copyConf are the init containers of flannel's manifests before install-conf.
const (
	copyPlugin = `
- name: install-cni-plugin
  command: [cp]
  args: [-f, /flannel, /opt/cni/bin/flannel]
  volumeMounts:
  - {name: cni-plugin, mountPath: /opt/cni/bin}`
	copyConf = `
- name: install-cni
  command: [cp]
  args: [-f, /etc/kube-flannel/cni-conf.json, /etc/cni/net.d/10-flannel.conflist]
  volumeMounts:
  - {name: cni, mountPath: /etc/cni/net.d}
  - {name: config, mountPath: /etc/kube-flannel/}`
)

// manifests returns the pods of flannel's manifests, oldest first, and of manifests that users
// wrote.
func manifests() []manifest {
	const mounts = `
  volumeMounts:
  - {name: run, mountPath: /run/flannel}
  - {name: config, mountPath: /etc/kube-flannel/}`
	const locked = mounts + `
  - {name: xtables-lock, mountPath: /run/xtables.lock}`
	const raw = `
  securityContext: {privileged: false, capabilities: {add: [NET_ADMIN, NET_RAW]}}
  env:` + flannelEnv + `
  - {name: EVENT_QUEUE_DEPTH, value: "5000"}`
	daemon := func(args string) string {
		return "\ncontainers:\n- name: kube-flannel\n  command: [/opt/bin/flanneld]\n  args: [" + args + "]"
	}
	const listWatch, getListWatch = "list, watch", "get, list, watch"
	return []manifest{
		{"v0.11.0", fullImageDir, listWatch, "initContainers:" + copyConf + daemon("--ip-masq, --kube-subnet-mgr") + `
  securityContext: {privileged: false, capabilities: {add: [NET_ADMIN]}}
  env:` + flannelEnv + mounts, nil},
		{"v0.20.1", fullImageDir, listWatch, "initContainers:" + copyPlugin + copyConf +
			daemon("--ip-masq, --kube-subnet-mgr") + raw + locked, nil},
		{"v0.26.1", fullImageDir, getListWatch, "initContainers:" + copyPlugin + copyConf +
			daemon("--ip-masq, --kube-subnet-mgr") + raw + locked, nil},
		{"v0.28", buildImageDir, getListWatch, `
initContainers:
- name: install-cni
  command: [/opt/bin/install-conf]
  args: [/etc/kube-flannel/cni-conf.json, /etc/cni/net.d/10-flannel.conflist]
  volumeMounts:
  - {name: cni, mountPath: /etc/cni/net.d}
  - {name: config, mountPath: /etc/kube-flannel/}` +
			daemon("--ip-masq, --kube-subnet-mgr, --healthz-port=8081") + raw + `
  - {name: CONT_WHEN_CACHE_NOT_READY, value: "false"}` + locked, nil},
		{"shell", fullImageDir, getListWatch, "initContainers:" + copyPlugin + copyConf + `
containers:
- name: kube-flannel
  command: [/bin/sh, -c]
  args:
  - >-
    set -e; address=$(ip -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1);
    iptables -V; nft -v;
    exec /opt/bin/flanneld --ip-masq --kube-subnet-mgr --public-ip="$address"` + raw + locked,
			[]string{"/bin/sh", "-c", "test -f /run/flannel/subnet.env && grep -q FLANNEL_SUBNET /run/flannel/subnet.env"}},
	}
}

// clusterRole returns the role of an account that may use nodes with these verbs.
func clusterRole(verbs string) []byte {
	return []byte(`apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: weft
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [""], resources: [nodes], verbs: [` + verbs + `]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
`)
}

// TestNetnsFlannelManifest runs the pods of flannel's manifests from Weft's image on one node and,
// if available, flannel's daemon on the other.
func TestNetnsFlannelManifest(t *testing.T) {
	for _, m := range manifests() {
		t.Run(m.name, func(t *testing.T) {
			root := m.image(t)
			c := newCluster(t, "vxlan", lab.Options{Nodes: 2})
			apply(t, c.api, clusterRole(m.role), false)
			for name, podCIDR := range map[string]string{"node1": "10.244.1.0/24", "node2": "10.244.2.0/24"} {
				c.recreateNode(t, c.nodes[name], podCIDR)
			}
			c.annotateAll(t) // flannel panics on a Node without annotations
			node, other := c.nodes["node1"], c.nodes["node2"]
			c.startFlannelPod(t, node, m, root)
			if os.Getenv(flanneldEnv) != "" {
				c.startFlannel(t, other)
			} else {
				t.Logf("NOT TESTED: flannel's daemon as peer: %s is not set", flanneldEnv)
				c.startPod(t, other)
			}
			c.waitReady(t, other)
			await(t, "subnet.env", func() error {
				_, err := os.Stat(node.Path("flannel/subnet.env"))
				return err
			})
			c.attachPods(t)
			c.checkAnnotations(t, node, "vxlan")
			c.checkCondition(t, node, "False", "FlannelIsUp")
			c.checkConflist(t, node)
		})
	}
}

// startFlannelPod creates the Pod object, from which the daemon reads its node's name, and runs its
// containers.
func (c *cluster) startFlannelPod(t *testing.T, node *clusterNode, m manifest, root string) {
	t.Helper()
	var pod corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(m.pod), &pod); err != nil {
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
	for _, spec := range pod.InitContainers {
		runToEnd(t, spec.Name, newContainer(t, spec, fields, root, node.volumes).start(t, node.Node, c.account))
	}
	daemon := newContainer(t, pod.Containers[0], fields, root, node.volumes)
	node.daemon = daemon.start(t, node.Node, c.account, c.apiServerEnv()...)
	if len(m.probe) > 0 {
		daemon.Argv = m.probe
		await(t, "the exec probe to succeed", func() error {
			return exitStatus(t.Context(), daemon.start(t, node.Node, c.account))
		})
	}
	if plugin := filepath.Join(node.volumes["cni-plugin"], "flannel"); len(pod.InitContainers) == 2 {
		if info, err := os.Stat(plugin); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("plugin %s: %v, %v", plugin, info, err)
		}
	}
}

// exitStatus waits for a process to end and returns an error unless its status is 0.
func exitStatus(ctx context.Context, p *lab.Process) error {
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	code, err := p.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d\n%s", code, p.Log())
	}
	return err
}

// runToEnd fails the test unless the process exits with status 0.
func runToEnd(t testing.TB, name string, p *lab.Process) {
	t.Helper()
	if err := exitStatus(t.Context(), p); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestNetnsImageCommands runs what operators and manifests run in the image, with a read-only root
// and no capabilities but NET_ADMIN and NET_RAW.
func TestNetnsImageCommands(t *testing.T) {
	root := fullImageDir(t)
	n := lab.Start(t, lab.Options{Nodes: 1, PodsPerNode: -1}).Nodes[0]
	account, lock := t.TempDir(), filepath.Join(t.TempDir(), "xtables.lock")
	writeFile(t, lock, "")
	for _, command := range []string{
		"ip -d -j route show table all", "ip rule", "ip neigh", "bridge fdb", "tc qdisc", "netstat -lun", "wg --version",
		"nft list ruleset", "iptables -S", "ip6tables-save", "iptables-legacy -V", "iptables-nft -S",
		"mkdir /tmp/x", "cat /etc/passwd", "ls -l /proc/self/fd", "nslookup -h || true", "which nc wget ping awk sed grep vi",
		"cp -f /flannel /tmp/flannel && test -x /tmp/flannel", "weft version", "flanneld --version", "weftd --version",
		"test -x /opt/bin/install-conf", "env | grep ^PATH",
		`printf 'FLANNEL_SUBNET=10.5.1.1/24\n' >/tmp/e && mk-docker-opts.sh -f /tmp/e -d /tmp/o && grep bip /tmp/o`,
		"iptables-legacy -P FORWARD DROP && iptables -V | grep legacy && iptables-legacy -P FORWARD ACCEPT",
		"iptables -V | grep nf_tables", "iptables-nft -N A && iptables -S A && iptables-nft -X A",
	} {
		c := container{Root: root, ReadOnlyRoot: true, Argv: []string{"sh", "-c", command},
			Mounts: []mount{{t.TempDir(), "/tmp", false}, {lock, "/run/xtables.lock", false}},
			Env:    []string{imagePath(t)}, Capabilities: []string{"NET_ADMIN", "NET_RAW"}, NoNewPrivs: true}
		if err := exitStatus(t.Context(), c.start(t, n, account)); err != nil {
			t.Errorf("%s: %v", command, err)
		}
	}
}
