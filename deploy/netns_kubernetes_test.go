package deploy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/bench"
	"weft/deploy/lab"
	"weft/lease"
	"weft/lease/kube/testkube"
	"weft/lease/subnetenv"
)

// prefix is the prefix of flannel's node annotations.
const prefix = "flannel.alpha.coreos.com/"

// podNetworks returns the ranges of a net-conf.json in the form of --cluster-cidr.
func podNetworks(t testing.TB, netConf string) string {
	t.Helper()
	n, err := lease.ParseNetwork([]byte(netConf))
	if err != nil {
		t.Fatal(err)
	}
	ranges := n.Network.String()
	if n.EnableIPv6 {
		ranges += "," + n.IPv6Network.String()
	}
	return ranges
}

// TestNetnsOverlays runs every overlay as shipped on three nodes.
func TestNetnsOverlays(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			c.startAll(t)
			c.attachPods(t)
			for _, node := range c.nodes {
				if err := c.runProbe(t.Context(), node, c.daemonContainer().LivenessProbe); err != nil {
					t.Errorf("%s: liveness: %v", node.Name, err)
				}
				c.checkAnnotations(t, node, overlay)
				c.checkCondition(t, node, "False", "FlannelIsUp")
				c.checkContainer(t, node, overlay)
				c.checkConflist(t, node)
			}
		})
	}
}

// checkAnnotations checks the annotations that a node publishes.
func (c *cluster) checkAnnotations(t *testing.T, node *clusterNode, overlay string) {
	t.Helper()
	got := c.nodeObject(t, node.Name).Metadata.Annotations
	want := map[string]string{
		"backend-type": overlay, "backend-data": "null", "public-ip": node.Addr.String(), "kube-subnet-manager": "true",
		"backend-v6-data": "", "public-ipv6": "",
	}
	switch overlay {
	case "udp":
		want["backend-type"] = ""
	case "vxlan":
		var data struct {
			VNI     int
			VtepMAC string
		}
		if err := json.Unmarshal([]byte(got[prefix+"backend-data"]), &data); err != nil || data.VNI != 1 ||
			data.VtepMAC == "" {
			t.Errorf("%s: backend-data %q: %v", node.Name, got[prefix+"backend-data"], err)
		}
		want["backend-data"] = got[prefix+"backend-data"]
	}
	for name, text := range want {
		if got[prefix+name] != text {
			t.Errorf("%s: annotation %s is %q, want %q", node.Name, name, got[prefix+name], text)
		}
	}
	if _, there := got[prefix+"backend-type"]; !there {
		t.Errorf("%s: no annotation backend-type", node.Name)
	}
}

// checkCondition waits for the NetworkUnavailable condition of a node.
func (c *cluster) checkCondition(t *testing.T, node *clusterNode, status, reason string) testkube.Condition {
	t.Helper()
	var got testkube.Condition
	await(t, node.Name+"'s condition", func() error {
		got, _ = c.nodeObject(t, node.Name).Condition("NetworkUnavailable")
		if got.Status != status || got.Reason != reason {
			return fmt.Errorf("got %+v", got)
		}
		return nil
	})
	return got
}

// checkContainer checks that the daemon runs with exactly the privileges of the manifest.
func (c *cluster) checkContainer(t *testing.T, node *clusterNode, overlay string) {
	t.Helper()
	want := 1<<12 | 1<<13 // NET_ADMIN, NET_RAW (linux/capability.h)
	if overlay == "udp" {
		want |= 1 << 23 // SYS_NICE
	}
	for _, key := range []string{"CapEff", "CapPrm", "CapBnd"} {
		if got := processStatus(t, node.daemon.PID(), key); got != fmt.Sprintf("%016x", want) {
			t.Errorf("%s: %s is %s", node.Name, key, got)
		}
	}
	if got := processStatus(t, node.daemon.PID(), "NoNewPrivs"); got != "1" {
		t.Errorf("%s: NoNewPrivs is %s", node.Name, got)
	}
	if got := processStatus(t, node.installer.PID(), "CapEff"); strings.Trim(got, "0") != "" {
		t.Errorf("%s: installer has capabilities %s", node.Name, got)
	}
}

// checkConflist waits for the CNI config that the kubelet reads.
func (c *cluster) checkConflist(t *testing.T, node *clusterNode) {
	t.Helper()
	want := configMap(t, c.manifests)["cni-conf.json"]
	await(t, node.Name+"'s CNI config", func() error {
		b, err := os.ReadFile(filepath.Join(node.volumes["cni"], "10-flannel.conflist"))
		if err == nil && string(b) != want {
			err = fmt.Errorf("got %q", b)
		}
		return err
	})
}

// TestNetnsStartOrder checks the order of a start: Node object, pod CIDR, then readiness,
// subnet.env and CNI config.
func TestNetnsStartOrder(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 1})
	node := c.nodes["node1"]
	if err := c.api.DeleteNode(t.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	c.startPod(t, node)
	checkWaiting := func(text string) {
		t.Helper()
		await(t, "readiness to report "+text, func() error {
			err := c.runProbe(t.Context(), node, c.daemonContainer().ReadinessProbe)
			if err == nil {
				t.Fatal("the node is ready")
			}
			if !strings.Contains(err.Error(), text) {
				return err
			}
			return nil
		})
		for _, file := range []string{node.Path("flannel/subnet.env"),
			filepath.Join(node.volumes["cni"], "10-flannel.conflist")} {
			if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s exists too early (%v)", file, err)
			}
		}
	}
	checkWaiting("node node1 is not in the cluster yet")
	if err := c.api.AddNode(t.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	checkWaiting("node node1 has no IPv4 podCIDR")
	if !strings.Contains(node.daemon.Log(), "has no IPv4 podCIDR") {
		t.Errorf("log lacks the reason for waiting:\n%s", node.daemon.Log())
	}
	if err := c.api.AllocateCIDRs(podNetworks(t, configMap(t, c.manifests)["net-conf.json"])); err != nil {
		t.Fatal(err)
	}
	c.waitReady(t, node)
	c.checkConflist(t, node)
}

// TestNetnsNodeRecreated deletes the Node object of a running daemon and recreates it, first with
// the same and then with another pod CIDR.
func TestNetnsNodeRecreated(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 2})
	c.startAll(t)
	c.attachPods(t)
	node := c.nodes["node2"]
	old := c.nodeObject(t, node.Name).Spec.PodCIDRs
	if err := c.api.DeleteNode(t.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	await(t, "readiness to fail", func() error {
		if c.runProbe(t.Context(), node, c.daemonContainer().ReadinessProbe) == nil {
			return errors.New("ready without a Node object")
		}
		return nil
	})
	if err := c.api.AddNode(t.Context(), node.Name, old...); err != nil {
		t.Fatal(err)
	}
	c.waitReady(t, node)
	c.checkAnnotations(t, node, "udp")
	c.checkCondition(t, node, "False", "FlannelIsUp")
	c.waitReachable(t)

	c.recreateNode(t, node, "10.244.200.0/24")
	await(t, "the new subnet in subnet.env", func() error {
		env, err := subnetenv.Read(node.Path("flannel/subnet.env"))
		if err == nil && env.Subnet.String() != "10.244.200.1/24" {
			err = fmt.Errorf("got %s", env.Subnet)
		}
		return err
	})
	c.waitReady(t, node)
	c.attachNode(t, node)
	c.waitReachable(t)
}

// TestNetnsAPIServerDown stops the API server. Traffic continues, a daemon restarted meanwhile
// comes back, and changes are seen afterwards.
func TestNetnsAPIServerDown(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 3})
	c.startAll(t)
	c.attachPods(t)
	if err := c.api.StopAPI(false); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.nodes {
		await(t, node.Name+" to notice", func() error {
			if !strings.Contains(node.daemon.Log(), "lease store failed, retrying") {
				return errors.New("not logged yet")
			}
			return nil
		})
	}
	c.waitReachable(t)
	node := c.nodes["node3"]
	if _, err := node.daemon.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.waitReachable(t) // the kernel forwards without the daemon
	c.startPod(t, node)
	c.waitReachable(t)
	began := time.Now()
	if err := c.api.StartAPI(); err != nil {
		t.Fatal(err)
	}
	c.waitReady(t, node)
	// A peer's new address reaches other nodes only through the API server.
	if err := c.api.Annotate(t.Context(), "node1",
		map[string]any{prefix + "public-ip-overwrite": "172.31.0.99"}); err != nil {
		t.Fatal(err)
	}
	await(t, "the others to learn of node1's address", func() error {
		for _, other := range []string{"node2", "node3"} {
			if !strings.Contains(c.status(t, c.nodes[other]), "172.31.0.99") {
				return fmt.Errorf("%s does not have it", other)
			}
		}
		return nil
	})
	t.Logf("%v after the API server's start", time.Since(began))
	if err := c.api.Annotate(t.Context(), "node1", map[string]any{prefix + "public-ip-overwrite": nil}); err != nil {
		t.Fatal(err)
	}
	c.waitReachable(t)
}

// status returns a daemon's /status.
func (c *cluster) status(t testing.TB, node *clusterNode) string {
	t.Helper()
	port := uint16(c.daemonContainer().Ports[0].ContainerPort)
	body, err := bench.GetInside(t.Context(), node.NS, netip.AddrPortFrom(node.Addr, port), "/status")
	if err != nil {
		t.Fatal(err)
	}
	var s any
	if err := json.Unmarshal(body, &s); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(s)
}

// TestNetnsConfigMapChanged changes the config of running daemons. The backend changes without new
// pods, and a network without the nodes' pod CIDRs is rejected.
func TestNetnsConfigMapChanged(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 2})
	c.startAll(t)
	c.attachPods(t)
	write := func(netConf string) {
		for _, node := range c.nodes {
			projectConfigMap(t, node.volumes["config"], map[string]string{"net-conf.json": netConf})
		}
	}
	write(`{"Network": "10.99.0.0/16", "Backend": {"Type": "udp"}}`)
	for _, node := range c.nodes {
		await(t, node.Name+" to reject the network", func() error {
			if !strings.Contains(c.status(t, node), "is not inside the network 10.99.0.0/16") {
				return errors.New("not in its status yet")
			}
			return nil
		})
		c.waitReady(t, node)
	}
	c.waitReachable(t)
	write(`{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}`)
	for _, node := range c.nodes {
		await(t, node.Name+" to change the backend", func() error {
			if got := c.nodeObject(t, node.Name).Metadata.Annotations[prefix+"backend-type"]; got != "host-gw" {
				return fmt.Errorf("it publishes %q", got)
			}
			return nil
		})
		c.waitReady(t, node)
		if node.HasLink("flannel0") {
			t.Errorf("%s: the device of the old backend still exists", node.Name)
		}
	}
	// The pods keep the old MTU, which is smaller.
	c.waitReachable(t)
}

// TestNetnsConditionFollowsForwarding occupies the daemon's route with one of another protocol,
// which the daemon may not delete.
func TestNetnsConditionFollowsForwarding(t *testing.T) {
	c := newCluster(t, "host-gw", lab.Options{Nodes: 2})
	c.startAll(t)
	node, peer := c.nodes["node1"], netip.MustParsePrefix(c.nodeObject(t, "node2").Spec.PodCIDR)
	up := c.checkCondition(t, node, "False", "FlannelIsUp")
	err := node.Do(func() error {
		dst := &net.IPNet{IP: peer.Addr().AsSlice(), Mask: net.CIDRMask(peer.Bits(), 32)}
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: c.Root.Addr.AsSlice(), Protocol: unix.RTPROT_STATIC})
	})
	if err != nil {
		t.Fatal(err)
	}
	down := c.checkCondition(t, node, "True", "WeftCannotForward")
	if !strings.Contains(down.Message, peer.String()) {
		t.Errorf("condition lacks the reason: %q", down.Message)
	}
	if !down.LastTransitionTime.After(up.LastTransitionTime) {
		t.Errorf("transitions at %v and %v", up.LastTransitionTime, down.LastTransitionTime)
	}
	if err := node.DeleteRoute(peer); err != nil {
		t.Fatal(err)
	}
	c.checkCondition(t, node, "False", "FlannelIsUp")
}

// TestNetnsRollingUpdate restarts the pods node by node under traffic, as the DaemonSet does.
func TestNetnsRollingUpdate(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			c.startAll(t)
			c.attachPods(t)
			from, to := c.nodes["node1"].Pods[0], c.nodes["node2"].Pods[0]
			ping, err := from.StartPing(t.Context(), to.Addr, lab.Ping{Count: -1, Interval: 5 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			for _, node := range c.nodes {
				before, err := os.ReadFile(node.Path("flannel/subnet.env"))
				if err != nil {
					t.Fatal(err)
				}
				c.checkConflist(t, node)
				c.stopPod(t, node)
				if _, err := os.Stat(filepath.Join(node.volumes["cni"], "10-flannel.conflist")); err != nil {
					t.Error(err)
				}
				c.startPod(t, node)
				c.waitReady(t, node)
				if after, err := os.ReadFile(node.Path("flannel/subnet.env")); err != nil ||
					string(after) != string(before) {
					t.Errorf("subnet.env was %q and is %q, %v", before, after, err)
				}
			}
			r := ping.Stop()
			t.Logf("%d of %d pings lost over three restarts", r.Lost(), r.Sent)
			if r.Sent < 100 {
				t.Errorf("%d pings sent, want at least 100", r.Sent)
			}
			if overlay != "udp" && r.Lost() > 0 {
				t.Error("packets lost, although the kernel forwards for this backend")
			}
			c.waitReachable(t)
		})
	}
}

// TestNetnsDualStack runs the vxlan overlay with both families.
func TestNetnsDualStack(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 2, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}})
	setNetConf(t, c, `{"Network": "10.244.0.0/16", "EnableIPv6": true,
		"IPv6Network": "fd00:10:244::/56", "Backend": {"Type": "vxlan"}}`)
	if err := c.api.AllocateCIDRs("10.244.0.0/16,fd00:10:244::/56"); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.nodes {
		c.startPod(t, node)
	}
	for _, node := range c.nodes {
		c.waitReady(t, node)
		a := c.nodeObject(t, node.Name).Metadata.Annotations
		if a[prefix+"public-ipv6"] != node.Addr6.String() || a[prefix+"backend-v6-data"] == "" ||
			a[prefix+"public-ip"] != node.Addr.String() {
			t.Errorf("%s publishes %v", node.Name, a)
		}
	}
	c.attachPods(t)
	for _, node := range c.nodes {
		if !node.Pods[0].Addr6.IsValid() {
			t.Fatal(errors.New("pods have no IPv6 address"))
		}
	}
	// Change one family only.
	n := c.nodes["node1"]
	if err := c.api.Annotate(t.Context(), n.Name,
		map[string]any{prefix + "public-ipv6-overwrite": "fd31::77"}); err != nil {
		t.Fatal(err)
	}
	await(t, "node1 to publish the address", func() error {
		got := c.nodeObject(t, n.Name).Metadata.Annotations[prefix+"public-ipv6"]
		if got != "fd31::77" {
			return errors.New("node1 publishes " + got)
		}
		return nil
	})
}

// TestNetnsIPv6OnlyCluster runs overlays on nodes, and with an API server, without IPv4 addresses.
func TestNetnsIPv6OnlyCluster(t *testing.T) {
	for _, backend := range []string{"udp", "vxlan", "host-gw", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			c := newCluster(t, backend, lab.Options{Underlay: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}})
			setNetConf(t, c, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56",
				"Backend": {"Type": "`+backend+`"}}`)
			if err := c.api.AllocateCIDRs("fd00:10:244::/56"); err != nil {
				t.Fatal(err)
			}
			for _, node := range c.nodes {
				c.startPod(t, node)
			}
			for _, node := range c.nodes {
				c.waitReady(t, node)
				a := c.nodeObject(t, node.Name).Metadata.Annotations
				if a[prefix+"public-ipv6"] != node.Addr.String() || a[prefix+"public-ip"] != "" {
					t.Errorf("%s publishes %v", node.Name, a)
				}
			}
			c.attachPods(t)
			c.waitReachable(t)
		})
	}
}

// TestNetnsSubnetIsNetwork has one node, to which the controller manager gives the whole network.
func TestNetnsSubnetIsNetwork(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 1})
	setNetConf(t, c, `{"Network": "172.16.66.0/24", "Backend": {"Type": "udp"}}`)
	if err := c.api.AllocateCIDRs("172.16.66.0/24"); err != nil {
		t.Fatal(err)
	}
	node := c.nodes["node1"]
	c.startPod(t, node)
	c.waitReady(t, node)
	c.attachNode(t, node)
	reach := func(when string) {
		t.Helper()
		await(t, when+": the node to reach its pod", func() error {
			r, err := node.Ping(t.Context(), node.Pods[0].Addr, lab.Ping{})
			if err == nil && r.Received == 0 {
				err = fmt.Errorf("%+v", r)
			}
			return err
		})
	}
	reach("first start")
	c.stopPod(t, node)
	c.startPod(t, node)
	c.waitReady(t, node)
	reach("restart")
}
