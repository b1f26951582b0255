package deploy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
	"weft/lease/kube/testkube"
)

// TestNetnsOverlayVariants runs the overlays that TestNetnsOverlays leaves out, and sends packets
// between their pods, of both families with dual-stack.
func TestNetnsOverlayVariants(t *testing.T) {
	underlay6 := []netip.Prefix{netip.MustParsePrefix("fd31::/64")}
	for _, tt := range []struct {
		overlay string
		driver  string // kind of device that the kernel must have
		options lab.Options
	}{
		{overlay: "nftables"},
		{overlay: "dual-stack", options: lab.Options{Underlay6: underlay6}},
		{overlay: "k3s"},
		{overlay: "canal"},
		{overlay: "ipip", driver: "ipip"},
		{overlay: "wireguard"}, // in the kernel or the daemon
	} {
		t.Run(tt.overlay, func(t *testing.T) {
			if tt.driver != "" {
				skipWithoutDriver(t, tt.driver)
			}
			c := newCluster(t, tt.overlay, tt.options)
			c.startAll(t)
			c.attachPods(t)
			for _, node := range c.nodes {
				if got, want := node.Pods[0].Addr6.IsValid(), tt.options.Underlay6 != nil; got != want {
					t.Errorf("%s: pods have IPv6 addresses: %t", node.Name, got)
				}
				c.checkCondition(t, node, "False", "FlannelIsUp")
			}
		})
	}
}

// skipWithoutDriver skips the test if the kernel cannot create a kind of device.
func skipWithoutDriver(t *testing.T, kind string) {
	t.Helper()
	ns, err := lab.NewNS("driver")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		return netlink.LinkAdd(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "probe"}, LinkType: kind})
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("NOT TESTED: this kernel has no %s", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestNetnsHelmInstall installs the chart with helm, runs the pods of the DaemonSet that the API
// server then has, changes a value and uninstalls the release.
func TestNetnsHelmInstall(t *testing.T) {
	manifests := renderChart(t)
	release := func(api *testkube.Cluster, args ...string) {
		t.Helper()
		if _, err := helm(t, append(args, "--namespace=kube-weft", "--kubeconfig="+api.Kubeconfig)...); err != nil {
			t.Fatal(err)
		}
	}
	c := newClusterOf(t, manifests, lab.Options{}, func(api *testkube.Cluster) {
		release(api, "install", "weft", "chart", "--create-namespace")
	})
	daemons := "/apis/apps/v1/namespaces/kube-weft/daemonsets/weft"
	if err := c.api.DoJSON(t.Context(), testkube.Request{Path: daemons}, &c.daemons); err != nil {
		t.Fatal(err)
	}
	c.startAll(t)
	c.attachPods(t)

	release(c.api, "upgrade", "weft", "chart", "--set=flannel.backend=host-gw")
	var config struct{ Data map[string]string }
	err := c.api.DoJSON(t.Context(), testkube.Request{Path: "/api/v1/namespaces/kube-weft/configmaps/weft-cfg"}, &config)
	if err != nil {
		t.Fatal(err)
	}
	var network struct{ Backend struct{ Type string } }
	if err := json.Unmarshal([]byte(config.Data["net-conf.json"]), &network); err != nil ||
		network.Backend.Type != "host-gw" {
		t.Errorf("after the upgrade: %v in %v", err, config.Data)
	}

	release(c.api, "uninstall", "weft")
	for _, o := range parseManifests(t, manifests) {
		await(t, fmt.Sprintf("%s %s to be deleted", o.Kind, o.Metadata.Name), func() error {
			status, _, err := c.api.Do(t.Context(), testkube.Request{Path: o.apiPath(t)})
			if err == nil && status != http.StatusNotFound {
				err = fmt.Errorf("status %d", status)
			}
			return err
		})
	}
	c.waitReachable(t) // the pods of this test still run
}
