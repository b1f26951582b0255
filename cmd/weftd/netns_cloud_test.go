package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft/bench"
	"weft/ctrl/backend/cloud/testcloud"
	"weft/deploy/lab"
)

// cloudNode is a node and the part of the cloud that it sees: its metadata and the API.
type cloudNode struct {
	*member
	cloud *testcloud.Cloud
}

// startCloud runs the daemon of a node, as instance with its address, in a VPC of its own.
func (c *cluster) startCloud(n *lab.Node, configure func(*testcloud.Cloud)) cloudNode {
	c.t.Helper()
	vpc := testcloud.NewAWS()
	c.t.Cleanup(vpc.Close)
	vpc.SetItem("network/interfaces/macs/02:00:00:00:00:01/local-ipv4s", n.Addr.String())
	vpc.SetItem("network/interfaces/macs/02:00:00:00:00:01/interface-id", "eni-"+n.Addr.String())
	configure(vpc)
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	p, err := n.Start([]string{self, fmt.Sprintf("--healthz-port=%d", clusterHealth), "--etcd-endpoints=" + c.endpoint()},
		asDaemon+"=1", "AWS_ENDPOINT_URL_EC2="+c.expose(vpc.API.Config.Handler),
		"AWS_EC2_METADATA_SERVICE_ENDPOINT="+c.expose(vpc.Metadata.Config.Handler))
	if err != nil {
		c.t.Fatal(err)
	}
	return cloudNode{&member{Process: p, node: n, t: c.t}, vpc}
}

// expose serves a handler where the nodes reach it, and returns its URL.
func (c *cluster) expose(h http.Handler) string {
	c.t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(c.Root.Addr, 0).String())
	if err != nil {
		c.t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	c.t.Cleanup(func() { s.Close() })
	go s.Serve(l)
	return "http://" + l.Addr().String()
}

// route gives the underlay's router the routes of the node's VPC.
func (c *cluster) route(d cloudNode) {
	c.t.Helper()
	for _, r := range d.cloud.Routes("rtb-main") {
		dst, target, _ := strings.Cut(r, " via eni-")
		subnet, err := netip.ParsePrefix(dst)
		if err != nil {
			continue // the VPC's own
		}
		via, err := netip.ParseAddr(target)
		if err != nil {
			c.t.Fatal(err)
		}
		if err := c.Root.AddRoute(subnet, via, ""); err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestNetnsCloudRoutes has two nodes on two subnets of a VPC, whose router has the routes that the
// daemons create. One of them lacks a permission at first.
func TestNetnsCloudRoutes(t *testing.T) {
	c := newCluster(t, lab.Options{Underlay: []netip.Prefix{
		netip.MustParsePrefix("172.31.1.0/24"), netip.MustParsePrefix("172.31.2.0/24")}},
		`{"Network":"10.5.0.0/16","Backend":{"Type":"aws-vpc"}}`)
	denied := c.startCloud(c.Nodes[0], func(vpc *testcloud.Cloud) {
		vpc.Always("CreateRoute", testcloud.Failure{Status: 403, Code: "UnauthorizedOperation", Message: "No."})
	})
	other := c.startCloud(c.Nodes[1], func(*testcloud.Cloud) {})
	other.awaitReady()
	denied.awaitNotReady("cloud: route table rtb-main: CreateRoute: UnauthorizedOperation: No: " +
		"the permission ec2:CreateRoute is missing")
	if _, err := os.Stat(denied.node.Path("flannel/subnet.env")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("subnet.env without a route: %v", err)
	}
	denied.awaitScreen(1, "the permission ec2:CreateRoute is missing")
	if status, out := denied.weft("doctor", "--probe=false"); status != 1 || !strings.Contains(out, "cloud-route-missing") {
		t.Errorf("doctor: status %d\n%s", status, out)
	}
	denied.cloud.Heal()
	denied.awaitReady()

	for _, d := range []cloudNode{denied, other} {
		if mtu := d.env().MTU; mtu != 1500 {
			t.Errorf("MTU %d", mtu)
		}
		c.route(d)
		d.attach()
	}
	c.awaitMesh()
	s := denied.status()
	if s.Cloud == nil || !s.Cloud.InPlace || s.Cloud.Provider != "aws-vpc" || s.Device != "" {
		t.Errorf("status %+v", s.Cloud)
	}
	m := denied.metrics()
	if m[`weft_cloud_calls_total{call="CreateRoute",provider="aws-vpc"}`] < 2 ||
		m[`weft_cloud_errors_total{call="CreateRoute",kind="denied",provider="aws-vpc"}`] < 1 {
		t.Errorf("metrics %v", cloudMetrics(m))
	}
	for _, d := range []cloudNode{denied, other} {
		want := d.env().Subnet.Masked().String() + " via eni-" + d.node.Addr.String()
		if routes := d.cloud.Routes("rtb-main"); len(routes) != 2 || routes[0] != want {
			t.Errorf("routes %v, want %s", routes, want)
		}
		for _, text := range []string{"role-secret", "role-token", "AKIDROLE"} {
			if d.logged(text) > 0 {
				t.Errorf("the log has %s", text)
			}
		}
		for _, p := range d.cloud.Problems() {
			t.Errorf("protocol: %s", p)
		}
		d.stop()
	}
}

// cloudMetrics returns the samples of the cloud's calls.
func cloudMetrics(m bench.Metrics) map[string]float64 {
	found := map[string]float64{}
	for sample, v := range m {
		if strings.HasPrefix(sample, "weft_cloud_") {
			found[sample] = v
		}
	}
	return found
}
