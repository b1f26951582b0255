package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"weft/lease"
)

const wideConf = `{"Network": "10.0.0.0/8", "Backend": {"Type": "udp"}}`

// kubeletNode returns a Node with the annotations of a daemon and about the rest that a kubelet
// writes.
func kubeletNode(i int) *corev1.Node {
	n := newNode(fmt.Sprintf("node-%d.cluster.example", i), fmt.Sprintf("10.%d.%d.0/24", i>>8, byte(i)))
	n.Annotations = map[string]string{
		FlannelPrefix + "/backend-type":                          "vxlan",
		FlannelPrefix + "/backend-data":                          fmt.Sprintf(`{"VNI":1,"VtepMAC":"0a:00:00:00:%02x:%02x"}`, i>>8, byte(i)),
		FlannelPrefix + "/public-ip":                             fmt.Sprintf("172.16.%d.%d", i>>8, byte(i)),
		FlannelPrefix + "/kube-subnet-manager":                   "true",
		"volumes.kubernetes.io/controller-managed-attach-detach": "true",
		"node.alpha.kubernetes.io/ttl":                           "300",
	}
	n.Labels = map[string]string{}
	for k := range 20 {
		n.Labels[fmt.Sprintf("example.com/label-%d", k)] = fmt.Sprint("value-", i)
	}
	for _, c := range []corev1.NodeConditionType{"Ready", "MemoryPressure", "DiskPressure", "PIDPressure"} {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: c, Status: "True",
			Reason: "KubeletReady", Message: "kubelet is posting ready status"})
	}
	for k := range 50 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{SizeBytes: int64(k),
			Names: []string{fmt.Sprintf("registry.example/team/image-%d@sha256:%064d", k, i), fmt.Sprintf("registry.example/team/image-%d:v1", k)}})
	}
	return n
}

// countedNodes counts the calls of the API server.
type countedNodes struct {
	nodeAPI
	mu    sync.Mutex
	calls map[string]int
}

func (c *countedNodes) count(verb string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[verb]++
}

func (c *countedNodes) total() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := map[string]int{}
	for verb, n := range c.calls {
		total[verb] = n
	}
	return total
}

func (c *countedNodes) Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Node, error) {
	c.count("get")
	return c.nodeAPI.Get(ctx, name, o)
}

func (c *countedNodes) List(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error) {
	c.count("list")
	return c.nodeAPI.List(ctx, o)
}

func (c *countedNodes) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	verb := "watch"
	if o.SendInitialEvents != nil && *o.SendInitialEvents && o.AllowWatchBookmarks {
		verb = "watch with a list and bookmarks"
	}
	c.count(verb)
	return c.nodeAPI.Watch(ctx, o)
}

func (c *countedNodes) Patch(ctx context.Context, name string, t types.PatchType, data []byte,
	o metav1.PatchOptions, subresources ...string) (*corev1.Node, error) {
	c.count("patch")
	return c.nodeAPI.Patch(ctx, name, t, data, o, subresources...)
}

// TestManyNodes follows many Nodes on a real API server. Their kubelets' heartbeats cause neither
// calls nor lists. WEFT_KUBE_NODES sets the number; with 10,000 it takes some minutes.
func TestManyNodes(t *testing.T) {
	count := 200
	if text := os.Getenv("WEFT_KUBE_NODES"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatalf("WEFT_KUBE_NODES: %v", err)
		}
	}
	cluster := startServer(t)
	client := admin(t, cluster)
	deleteNodes(t, client)
	forAll(t, count, func(i int) error {
		_, err := client.Nodes().Create(t.Context(), kubeletNode(i), metav1.CreateOptions{})
		return err
	})
	t.Cleanup(func() { deleteNodes(t, client) })

	before := heap()
	began := time.Now()
	s, calls := openCounted(t, Config{Node: kubeletNode(0).Name, NetworkFile: writeConf(t, wideConf),
		Kubeconfig: cluster.Kubeconfig, Log: slog.New(slog.DiscardHandler)})
	r := requestOf(t, wideConf)
	r.Attrs = lease.Attrs{PublicIP: attrsOf(0).PublicIP, BackendType: "vxlan"}
	states, _ := startManager(t, s, r)
	waitState(t, states, "all nodes", func(s lease.State) bool { return isHeld(s) && s.All.Len() == count })
	t.Logf("%d nodes after %v, %d bytes of heap per node, calls %v", count, time.Since(began),
		(heap()-before)/count, calls.total())
	start := calls.total()
	if start["list"] != 0 || start["watch with a list and bookmarks"] != 1 {
		t.Errorf("calls at the start: %v, want one watch with a list and bookmarks", start)
	}

	s.cache.mu.Lock()
	delivered := s.cache.changed
	s.cache.mu.Unlock()
	forAll(t, count, func(i int) error { return heartbeat(t.Context(), client, i) })
	last := kubeletNode(count - 1).Name
	tc := testCluster{client: client}
	tc.annotate(t, last, FlannelPrefix+"/public-ip", `"203.0.113.9"`)
	state := waitState(t, states, "the change after the heartbeats", func(s lease.State) bool {
		return slices.ContainsFunc(lease.List(s.All), func(l lease.Lease) bool {
			return l.Node == last && l.PublicIP.String() == "203.0.113.9"
		})
	})
	if now := calls.total(); fmt.Sprint(now) != fmt.Sprint(start) {
		t.Errorf("calls %v after the heartbeats, %v before", now, start)
	}
	if state.All.Len() != count {
		t.Errorf("%d nodes", state.All.Len())
	}
	select {
	case <-delivered: // by the changed annotation
	default:
		t.Error("no notification")
	}
}

// forAll calls f for the numbers below n, some at a time.
func forAll(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	next := make(chan int)
	for range 8 {
		all.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

// heartbeat writes the status of a Node as its kubelet does.
func heartbeat(ctx context.Context, client typed.CoreV1Interface, i int) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{
		map[string]any{"type": "Ready", "lastHeartbeatTime": metav1.Now()}}}})
	if err != nil {
		return err
	}
	_, err = client.Nodes().Patch(ctx, kubeletNode(i).Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{}, "status")
	return err
}

// heap returns the bytes in use after a garbage collection.
func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// openCounted opens a Store on the API server that counts its calls.
func openCounted(t *testing.T, c Config) (*Store, *countedNodes) {
	t.Helper()
	scheme, err := coreTypes()
	if err != nil {
		t.Fatal(err)
	}
	config, err := restConfig(c, scheme)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	restClient, err := rest.RESTClientForConfigAndClient(config, transport)
	if err != nil {
		t.Fatal(err)
	}
	nodes, pods := clients(restClient, scheme, c.Namespace)
	counted := &countedNodes{nodeAPI: nodes, calls: map[string]int{}}
	s, err := newStore(c, counted, pods)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
	})
	return s, counted
}

// TestCacheMemory holds the size of a node in the cache. A complete Node has about 20 KB.
func TestCacheMemory(t *testing.T) {
	const count = 2000
	c := newNodeCache(defaultNames(t), slog.New(slog.DiscardHandler), nil)
	c.setNetwork(network(t, wideConf))
	before := heap()
	for i := range count {
		b, err := kubeletNode(i).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		var n corev1.Node // as decoded: its strings are its own
		if err := n.Unmarshal(b); err != nil {
			t.Fatal(err)
		}
		if err := c.Update(&n); err != nil {
			t.Fatal(err)
		}
	}
	perNode := (heap() - before) / count
	t.Logf("%d bytes per node", perNode)
	if perNode > 1200 {
		t.Errorf("%d bytes per node, want at most 1,200", perNode)
	}
	if c.current().leases.Leases.Len() != 0 || len(c.nodes) != count {
		t.Errorf("%d nodes", len(c.nodes)) // not synced: no list yet
	}
}

// BenchmarkHeartbeat is the work per heartbeat of a kubelet: decode, and nothing else.
func BenchmarkHeartbeat(b *testing.B) {
	c := newNodeCache(annotations{}, slog.New(slog.DiscardHandler), nil)
	encoded, err := kubeletNode(7).Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ReportMetric(float64(len(encoded)), "bytes/Node")
	for b.Loop() {
		var n corev1.Node
		if err := n.Unmarshal(encoded); err != nil {
			b.Fatal(err)
		}
		if err := c.Update(&n); err != nil {
			b.Fatal(err)
		}
	}
}
