package deploy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/deploy/lab"
)

const (
	scaleNodes = 1000
	// client-go's reflector renews a watch every 5 to 10 minutes: 8 per hour.
	watchesPerHour = 8
)

// scaleConf is a network with room for scaleNodes.
const scaleConf = `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}`

// recreateNode recreates a Node object with a pod CIDR.
func (c *cluster) recreateNode(t testing.TB, node *clusterNode, podCIDR string) {
	t.Helper()
	if err := c.api.DeleteNode(t.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	if err := c.api.AddNode(t.Context(), node.Name, podCIDR); err != nil {
		t.Fatal(err)
	}
}

// addPeers creates n Nodes with leases, eight at a time.
func (c *cluster) addPeers(t testing.TB, n int) {
	t.Helper()
	var group sync.WaitGroup
	numbers, failed := make(chan int), make(chan error, n)
	for range 8 {
		group.Go(func() {
			for i := range numbers {
				if err := c.addPeer(t, i); err != nil {
					failed <- err
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	group.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
}

// peer returns the pod CIDR and the public address of the i-th peer.
func peer(i int) (podCIDR netip.Prefix, public netip.Addr) {
	i += 1024 // above the subnets of the lab's own nodes
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), 0}), 24),
		netip.AddrFrom4([4]byte{172, 31, 0, 100})
}

// addPeer creates the Node of the i-th peer with its lease.
func (c *cluster) addPeer(t testing.TB, i int) error {
	podCIDR, public := peer(i)
	mac := fmt.Sprintf(`{"VNI":1,"VtepMAC":"0a:00:00:00:%02x:%02x"}`, i>>8, i&0xff)
	return c.api.AddLease(t.Context(), fmt.Sprintf("peer%d", i), podCIDR.String(), public.String(), map[string]string{
		"backend-type": "vxlan", "backend-data": mac,
	})
}

// peerRoutes returns the number of routes to peers in the kernel.
func (node *clusterNode) peerRoutes(t testing.TB) int {
	t.Helper()
	routes, err := node.Routes()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range routes {
		if r.Dst.Bits() == 24 && r.Device == "flannel.1" {
			n++
		}
	}
	return n
}

// TestNetnsAPIServerCalls checks the requests of a daemon's start, and that it sends none while
// nothing changes.
func TestNetnsAPIServerCalls(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 1})
	setNetConf(t, c, scaleConf)
	c.addPeers(t, 20)
	node := c.nodes["node1"]
	c.recreateNode(t, node, "10.244.0.0/24")
	c.startPod(t, node)
	c.waitReady(t, node)
	c.checkCondition(t, node, "False", "FlannelIsUp")
	want := "get nodes, get nodes, patch nodes/status, watch nodes, patch nodes/status"
	if got := c.calls(t); got != want {
		t.Errorf("at the start: %s\nwant %s", got, want)
	}
	if err := c.addPeer(t, 20); err != nil {
		t.Fatal(err)
	}
	await(t, "the new node's route", func() error {
		if n := node.peerRoutes(t); n != 21 {
			return fmt.Errorf("%d routes", n)
		}
		return nil
	})
	if got := c.calls(t); got != want {
		t.Errorf("after another node's change: %s", got)
	}
}

// calls returns the daemon's requests to the API server so far.
func (c *cluster) calls(t testing.TB) string {
	t.Helper()
	calls, err := c.api.Calls("weftd/")
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, call := range calls {
		texts = append(texts, call.String())
	}
	return strings.Join(texts, ", ")
}

// BenchmarkNetnsThousandNodes measures a vxlan daemon in a cluster of 1,000 nodes: its memory, its
// API requests, the time from its start to the last route, and from a new Node to its route.
func BenchmarkNetnsThousandNodes(b *testing.B) {
	c := newCluster(b, "vxlan", lab.Options{Nodes: 1})
	setNetConf(b, c, scaleConf)
	c.addPeers(b, scaleNodes)
	node := c.nodes["node1"]
	c.recreateNode(b, node, "10.244.0.0/24")
	routed := func(n int) time.Duration {
		began := time.Now()
		await(b, "routes", func() error {
			if got := node.peerRoutes(b); got != n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
		return time.Since(began)
	}
	c.startPod(b, node)
	start := routed(scaleNodes)
	c.waitReady(b, node)
	calls := len(strings.Split(c.calls(b), ","))
	next := scaleNodes
	var latency time.Duration
	for b.Loop() {
		if err := c.addPeer(b, next); err != nil {
			b.Fatal(err)
		}
		next++
		latency += routed(next)
	}
	memory, err := node.daemon.RSS()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(memory)/(1<<20), "MiB-RSS")
	b.ReportMetric(start.Seconds(), "s-to-all-routes")
	b.ReportMetric(float64(latency.Milliseconds())/float64(b.N), "ms/new-node")
	b.ReportMetric(float64(calls), "calls-at-start")
	b.ReportMetric(float64(len(strings.Split(c.calls(b), ","))-calls+watchesPerHour), "calls/h")
}

// setNetConf changes the network config of all nodes.
func setNetConf(t testing.TB, c *cluster, netConf string) {
	t.Helper()
	for _, node := range c.nodes {
		files := configMap(t, c.manifests)
		files["net-conf.json"] = netConf
		projectConfigMap(t, node.volumes["config"], files)
	}
}
