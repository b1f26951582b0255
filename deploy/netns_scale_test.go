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
	manyNodes = 1000
	// A watch of all nodes lasts 5 to 10 minutes before the client asks for it anew (client-go's reflector): 8 an hour.
	watchesPerHour = 8
)

// scaleConf has room for them.
const scaleConf = `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}`

// renumber makes a node's object anew, with a pod CIDR.
func (c *cluster) renumber(t testing.TB, m *machine, podCIDR string) {
	t.Helper()
	if err := c.api.DeleteNode(t.Context(), m.Name); err != nil {
		t.Fatal(err)
	}
	if err := c.api.AddNode(t.Context(), m.Name, podCIDR); err != nil {
		t.Fatal(err)
	}
}

// addMany creates Nodes with leases, some at a time.
func (c *cluster) addMany(t testing.TB, n int) {
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

// peer is where the i-th peer and its pods are.
func peer(i int) (podCIDR netip.Prefix, public netip.Addr) {
	i += 1024 // beyond what the lab's own nodes have
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), 0}), 24),
		netip.AddrFrom4([4]byte{172, 31, 0, 100})
}

func (c *cluster) addPeer(t testing.TB, i int) error {
	podCIDR, public := peer(i)
	mac := fmt.Sprintf(`{"VNI":1,"VtepMAC":"0a:00:00:00:%02x:%02x"}`, i>>8, i&0xff)
	return c.api.AddLease(t.Context(), fmt.Sprintf("peer%d", i), podCIDR.String(), public.String(), map[string]string{
		"backend-type": "vxlan", "backend-data": mac,
	})
}

// peersRouted counts the routes to peers in the kernel.
func (m *machine) peersRouted(t testing.TB) int {
	t.Helper()
	routes, err := m.Routes()
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

// TestNetnsCallsOfTheAPIServer holds what a daemon asks for at its start, and that it asks for nothing while nothing happens.
func TestNetnsCallsOfTheAPIServer(t *testing.T) {
	c := newCluster(t, "vxlan", lab.Options{Nodes: 1})
	writeNetwork(t, c, scaleConf)
	c.addMany(t, 20)
	m := c.nodes["node1"]
	c.renumber(t, m, "10.244.0.0/24")
	c.start(t, m)
	c.ready(t, m)
	c.checkCondition(t, m, "False", "FlannelIsUp")
	want := "get nodes, get nodes, patch nodes/status, watch nodes, patch nodes/status"
	if got := c.calls(t); got != want {
		t.Errorf("at the start: %s\nwant %s", got, want)
	}
	if err := c.addPeer(t, 20); err != nil {
		t.Fatal(err)
	}
	await(t, "the new node's route", func() error {
		if n := m.peersRouted(t); n != 21 {
			return fmt.Errorf("%d routes", n)
		}
		return nil
	})
	if got := c.calls(t); got != want {
		t.Errorf("after another node's change: %s", got)
	}
}

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

// BenchmarkNetnsThousandNodes measures a daemon of the vxlan backend in a cluster of 1,000 nodes: its memory, its calls of
// the API server, the time from its start to the last route, and from a new Node to its route.
func BenchmarkNetnsThousandNodes(b *testing.B) {
	c := newCluster(b, "vxlan", lab.Options{Nodes: 1})
	writeNetwork(b, c, scaleConf)
	c.addMany(b, manyNodes)
	m := c.nodes["node1"]
	c.renumber(b, m, "10.244.0.0/24")
	routed := func(n int) time.Duration {
		began := time.Now()
		await(b, "routes", func() error {
			if got := m.peersRouted(b); got != n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
		return time.Since(began)
	}
	c.start(b, m)
	start := routed(manyNodes)
	c.ready(b, m)
	calls := len(strings.Split(c.calls(b), ","))
	next := manyNodes
	var latency time.Duration
	for b.Loop() {
		if err := c.addPeer(b, next); err != nil {
			b.Fatal(err)
		}
		next++
		latency += routed(next)
	}
	memory, err := m.daemon.RSS()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(memory)/(1<<20), "MiB-RSS")
	b.ReportMetric(start.Seconds(), "s-to-all-routes")
	b.ReportMetric(float64(latency.Milliseconds())/float64(b.N), "ms/new-node")
	b.ReportMetric(float64(calls), "calls-at-start")
	b.ReportMetric(float64(len(strings.Split(c.calls(b), ","))-calls+watchesPerHour), "calls/h")
}

// writeNetwork changes the config of all nodes.
func writeNetwork(t testing.TB, c *cluster, netConf string) {
	t.Helper()
	for _, m := range c.nodes {
		files := configMap(t, c.manifests)
		files["net-conf.json"] = netConf
		projectConfigMap(t, m.volumes["config"], files)
	}
}
