package deploy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
	"weft/lease"
	"weft/lease/kube/testkube"
	"weft/lease/subnetenv"
)

const prefix = "flannel.alpha.coreos.com/"

// configNetwork are the ranges of a net-conf.json as the controller that allocates from them takes them.
func configNetwork(t testing.TB, netConf string) string {
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

// TestNetnsThreeNodes runs every overlay as it is written on three nodes.
func TestNetnsThreeNodes(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			c.up(t)
			c.attach(t)
			for _, m := range c.nodes {
				if err := c.probe(t.Context(), m, c.weft().LivenessProbe); err != nil {
					t.Errorf("%s: liveness: %v", m.Name, err)
				}
				c.checkAnnotations(t, m, overlay)
				c.checkCondition(t, m, "False", "FlannelIsUp")
				c.checkContainer(t, m, overlay)
				c.checkConflist(t, m)
			}
		})
	}
}

// checkAnnotations holds what a node publishes.
func (c *cluster) checkAnnotations(t *testing.T, m *machine, overlay string) {
	t.Helper()
	got := c.node(t, m.Name).Metadata.Annotations
	want := map[string]string{
		"backend-type": overlay, "backend-data": "null", "public-ip": m.Addr.String(), "kube-subnet-manager": "true",
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
		if err := json.Unmarshal([]byte(got[prefix+"backend-data"]), &data); err != nil || data.VNI != 1 || data.VtepMAC == "" {
			t.Errorf("%s: backend-data %q: %v", m.Name, got[prefix+"backend-data"], err)
		}
		want["backend-data"] = got[prefix+"backend-data"]
	}
	for name, text := range want {
		if got[prefix+name] != text {
			t.Errorf("%s: annotation %s is %q, want %q", m.Name, name, got[prefix+name], text)
		}
	}
	if _, there := got[prefix+"backend-type"]; !there {
		t.Errorf("%s: no annotation backend-type", m.Name)
	}
}

// checkCondition waits for the node's NetworkUnavailable condition.
func (c *cluster) checkCondition(t *testing.T, m *machine, status, reason string) testkube.Condition {
	t.Helper()
	var got testkube.Condition
	await(t, m.Name+"'s condition", func() error {
		got, _ = c.node(t, m.Name).Condition("NetworkUnavailable")
		if got.Status != status || got.Reason != reason {
			return fmt.Errorf("it is %+v", got)
		}
		return nil
	})
	return got
}

// checkContainer holds that the daemon really runs with no more than the manifest gives it.
func (c *cluster) checkContainer(t *testing.T, m *machine, overlay string) {
	t.Helper()
	want := 1<<12 | 1<<13 // NET_ADMIN, NET_RAW (linux/capability.h)
	if overlay == "udp" {
		want |= 1 << 23 // SYS_NICE
	}
	for _, key := range []string{"CapEff", "CapPrm", "CapBnd"} {
		if got := processStatus(t, m.daemon.PID(), key); got != fmt.Sprintf("%016x", want) {
			t.Errorf("%s: %s is %s", m.Name, key, got)
		}
	}
	if got := processStatus(t, m.daemon.PID(), "NoNewPrivs"); got != "1" {
		t.Errorf("%s: NoNewPrivs is %s", m.Name, got)
	}
	if got := processStatus(t, m.installer.PID(), "CapEff"); strings.Trim(got, "0") != "" {
		t.Errorf("%s: the installer has capabilities %s", m.Name, got)
	}
}

// checkConflist waits for the CNI config that the kubelet reads.
func (c *cluster) checkConflist(t *testing.T, m *machine) {
	t.Helper()
	want := configMap(t, c.manifests)["cni-conf.json"]
	await(t, m.Name+"'s CNI config", func() error {
		b, err := os.ReadFile(filepath.Join(m.volumes["cni"], "10-flannel.conflist"))
		if err == nil && string(b) != want {
			err = fmt.Errorf("it is %q", b)
		}
		return err
	})
}

// TestNetnsNothingIsPromisedBeforeItIsThere holds the order of a start: the node's object, its pod CIDR, then readiness,
// subnet.env and the CNI config.
func TestNetnsNothingIsPromisedBeforeItIsThere(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 1})
	m := c.nodes["node1"]
	if err := c.api.DeleteNode(t.Context(), m.Name); err != nil {
		t.Fatal(err)
	}
	c.start(t, m)
	waits := func(text string) {
		t.Helper()
		await(t, "readiness to say "+text, func() error {
			err := c.probe(t.Context(), m, c.weft().ReadinessProbe)
			if err == nil {
				t.Fatal("the node is ready")
			}
			if !strings.Contains(err.Error(), text) {
				return err
			}
			return nil
		})
		for _, file := range []string{m.Path("flannel/subnet.env"), filepath.Join(m.volumes["cni"], "10-flannel.conflist")} {
			if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is there already (%v)", file, err)
			}
		}
	}
	waits("node node1 is not in the cluster yet")
	if err := c.api.AddNode(t.Context(), m.Name); err != nil {
		t.Fatal(err)
	}
	waits("node node1 has no IPv4 podCIDR")
	if !strings.Contains(m.daemon.Log(), "has no IPv4 podCIDR") {
		t.Errorf("the log does not say what is waited for:\n%s", m.daemon.Log())
	}
	if err := c.api.AllocateCIDRs(configNetwork(t, configMap(t, c.manifests)["net-conf.json"])); err != nil {
		t.Fatal(err)
	}
	c.ready(t, m)
	c.checkConflist(t, m)
}

// TestNetnsNodeObjectIsMadeAnew deletes a Node object under a running daemon and makes it again, first with the same and
// then with another pod CIDR.
func TestNetnsNodeObjectIsMadeAnew(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 2})
	c.up(t)
	c.attach(t)
	m := c.nodes["node2"]
	was := c.node(t, m.Name).Spec.PodCIDRs
	if err := c.api.DeleteNode(t.Context(), m.Name); err != nil {
		t.Fatal(err)
	}
	await(t, "the loss to be told", func() error {
		if c.probe(t.Context(), m, c.weft().ReadinessProbe) == nil {
			return errors.New("ready without a Node object")
		}
		return nil
	})
	if err := c.api.AddNode(t.Context(), m.Name, was...); err != nil {
		t.Fatal(err)
	}
	c.ready(t, m)
	c.checkAnnotations(t, m, "udp")
	c.checkCondition(t, m, "False", "FlannelIsUp")
	c.reach(t)

	c.renumber(t, m, "10.244.200.0/24")
	await(t, "the new subnet in subnet.env", func() error {
		env, err := subnetenv.Read(m.Path("flannel/subnet.env"))
		if err == nil && env.Subnet.String() != "10.244.200.1/24" {
			err = fmt.Errorf("it says %s", env.Subnet)
		}
		return err
	})
	c.ready(t, m)
	c.attachNode(t, m)
	c.reach(t)
}

// TestNetnsAPIServerAway stops the API server: traffic goes on, a daemon that is restarted in that time comes back, and what
// changed is seen afterwards.
func TestNetnsAPIServerAway(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 3})
	c.up(t)
	c.attach(t)
	if err := c.api.StopAPI(false); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.nodes {
		await(t, m.Name+" to notice", func() error {
			if !strings.Contains(m.daemon.Log(), "trouble with the lease store") {
				return errors.New("it does not say so")
			}
			return nil
		})
	}
	c.reach(t)
	m := c.nodes["node3"]
	if _, err := m.daemon.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.reach(t) // the kernel carries on without the daemon
	c.start(t, m)
	c.reach(t)
	began := time.Now()
	if err := c.api.StartAPI(); err != nil {
		t.Fatal(err)
	}
	c.ready(t, m)
	// A peer's new address: another node is told of it by the API server alone.
	if err := c.api.Annotate(t.Context(), "node1", map[string]any{prefix + "public-ip-overwrite": "172.31.0.99"}); err != nil {
		t.Fatal(err)
	}
	await(t, "the others to learn of node1's address", func() error {
		for _, other := range []string{"node2", "node3"} {
			if !strings.Contains(c.status(t, c.nodes[other]), "172.31.0.99") {
				return fmt.Errorf("%s does not know it", other)
			}
		}
		return nil
	})
	t.Logf("%v after the API server's start", time.Since(began))
	if err := c.api.Annotate(t.Context(), "node1", map[string]any{prefix + "public-ip-overwrite": nil}); err != nil {
		t.Fatal(err)
	}
	c.reach(t)
}

// status reads a daemon's /status.
func (c *cluster) status(t testing.TB, m *machine) string {
	t.Helper()
	answer, err := http.Get(fmt.Sprintf("http://%s:%d/status", m.Addr, c.weft().Ports[0].ContainerPort))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var s any
	if err := json.NewDecoder(answer.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(s)
}

// TestNetnsChangedConfigMap changes the config under running daemons: the backend is another without new pods, and a network
// that the nodes are not in is refused.
func TestNetnsChangedConfigMap(t *testing.T) {
	c := newCluster(t, "udp", lab.Options{Nodes: 2})
	c.up(t)
	c.attach(t)
	write := func(netConf string) {
		for _, m := range c.nodes {
			projectConfigMap(t, m.volumes["config"], map[string]string{"net-conf.json": netConf})
		}
	}
	write(`{"Network": "10.99.0.0/16", "Backend": {"Type": "udp"}}`)
	for _, m := range c.nodes {
		await(t, m.Name+" to refuse the network", func() error {
			if !strings.Contains(c.status(t, m), "is not inside the network 10.99.0.0/16") {
				return errors.New("its status does not say so")
			}
			return nil
		})
		c.ready(t, m)
	}
	c.reach(t)
	write(`{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}`)
	for _, m := range c.nodes {
		await(t, m.Name+" to take the backend", func() error {
			if got := c.node(t, m.Name).Metadata.Annotations[prefix+"backend-type"]; got != "host-gw" {
				return fmt.Errorf("it publishes %q", got)
			}
			return nil
		})
		c.ready(t, m)
		if m.HasLink("flannel0") {
			t.Errorf("%s: the device of the old backend is still there", m.Name)
		}
	}
	// Pods were made with the old MTU, which is the smaller one.
	c.reach(t)
}

// TestNetnsConditionFollowsForwarding puts another's route where the daemon's must be, which it may not remove.
func TestNetnsConditionFollowsForwarding(t *testing.T) {
	c := newCluster(t, "host-gw", lab.Options{Nodes: 2})
	c.up(t)
	m, peer := c.nodes["node1"], netip.MustParsePrefix(c.node(t, "node2").Spec.PodCIDR)
	up := c.checkCondition(t, m, "False", "FlannelIsUp")
	err := m.Do(func() error {
		dst := &net.IPNet{IP: peer.Addr().AsSlice(), Mask: net.CIDRMask(peer.Bits(), 32)}
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: c.Root.Addr.AsSlice(), Protocol: unix.RTPROT_STATIC})
	})
	if err != nil {
		t.Fatal(err)
	}
	down := c.checkCondition(t, m, "True", "WeftCannotForward")
	if !strings.Contains(down.Message, peer.String()) {
		t.Errorf("the condition does not say why: %q", down.Message)
	}
	if !down.LastTransitionTime.After(up.LastTransitionTime) {
		t.Errorf("transitions at %v and %v", up.LastTransitionTime, down.LastTransitionTime)
	}
	if err := m.DeleteRoute(peer); err != nil {
		t.Fatal(err)
	}
	c.checkCondition(t, m, "False", "FlannelIsUp")
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
