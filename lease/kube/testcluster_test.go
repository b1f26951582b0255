package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"weft/lease"
	"weft/lease/kube/testkube"
	"weft/lease/storetest"
)

func TestMain(m *testing.M) {
	status := m.Run()
	if err := server.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// apiServer is the API server of all tests, started by the first test that needs it.
type apiServer struct {
	once    sync.Once
	dir     string
	cluster *testkube.Cluster
	err     error
}

var server apiServer

// startServer returns the API server. It skips the test if there is no binary.
func startServer(t testing.TB) *testkube.Cluster {
	t.Helper()
	server.once.Do(func() {
		if server.dir, server.err = os.MkdirTemp("", "weft-testkube"); server.err == nil {
			server.cluster, server.err = testkube.Start(netip.MustParseAddr("127.0.0.1"), server.dir)
		}
	})
	if errors.Is(server.err, testkube.ErrNoBinary) {
		t.Skipf("NOT TESTED with a real API server: %v", server.err)
	}
	if server.err != nil {
		t.Fatal(server.err)
	}
	return server.cluster
}

func (s *apiServer) close() error {
	var err error
	if s.cluster != nil {
		err = s.cluster.Close()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

const netConf = `{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}`

// testCluster is the cluster of a test. For storetest it has 20 nodes with pod CIDRs and one
// without.
type testCluster struct {
	client api
	conf   string
	open   func(t *testing.T, c Config) *Store
	next   int
}

const clusterNodes = 20

func nodeName(n int) string { return fmt.Sprintf("node%d", n) }

func podCIDRText(n int) string { return fmt.Sprintf("10.244.%d.0/24", n+1) }

func newNode(name string, cidrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = cidrs[0], cidrs
	}
	return n
}

func (tc *testCluster) harness(t *testing.T) storetest.Harness {
	t.Helper()
	tc.conf = writeConf(t, netConf)
	for n := range clusterNodes + 1 {
		node := newNode(nodeName(n), podCIDRText(n))
		if n == clusterNodes {
			node = newNode(nodeName(n))
		}
		tc.create(t, node)
	}
	network, err := lease.ParseNetwork([]byte(netConf))
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Harness{
		Nodes: clusterNodes,
		Request: func(n int) lease.Request {
			return lease.Request{Network: network, Node: nodeName(n), Attrs: attrsOf(n)}
		},
		Open: func(t *testing.T, n int) lease.Store {
			return tc.open(t, Config{Node: nodeName(n), NetworkFile: tc.conf, WriteCondition: true,
				Log: slog.New(slog.DiscardHandler)})
		},
		Add:    tc.add,
		Change: tc.change,
		Remove: tc.remove,
	}
}

func attrsOf(n int) lease.Attrs {
	return lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)})}
}

func (tc *testCluster) create(t *testing.T, n *corev1.Node) {
	t.Helper()
	if _, err := tc.client.Nodes().Create(t.Context(), n, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (tc *testCluster) annotate(t *testing.T, node, name, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, name, value)
	if _, err := tc.client.Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// add creates a node annotated as by flannel.
func (tc *testCluster) add(t *testing.T) lease.Lease {
	tc.next++
	l := lease.Lease{Node: fmt.Sprintf("foreign%d", tc.next), Subnet: netip.MustParsePrefix(podCIDRText(100 + tc.next)),
		Attrs: attrsOf(100 + tc.next)}
	n := newNode(l.Node, l.Subnet.String())
	n.Annotations = map[string]string{
		FlannelPrefix + "/backend-type":        "",
		FlannelPrefix + "/backend-data":        "null",
		FlannelPrefix + "/public-ip":           l.PublicIP.String(),
		FlannelPrefix + "/kube-subnet-manager": "true",
	}
	tc.create(t, n)
	return l
}

func (tc *testCluster) change(t *testing.T, l lease.Lease) lease.Lease {
	l.PublicIP = l.PublicIP.Next()
	tc.annotate(t, l.Node, FlannelPrefix+"/public-ip", `"`+l.PublicIP.String()+`"`)
	return l
}

// remove deletes a foreign node. Of a node created for storetest it removes only the annotation.
func (tc *testCluster) remove(t *testing.T, l lease.Lease) {
	if l.Node[:4] == "node" {
		tc.annotate(t, l.Node, FlannelPrefix+"/kube-subnet-manager", "null")
		return
	}
	if err := tc.client.Nodes().Delete(t.Context(), l.Node, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func writeConf(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// api is the part of a typed client that the tests use.
type api interface {
	typed.NodesGetter
	typed.PodsGetter
}

// fakeAPI is client-go's own fake.
type fakeAPI struct{ typed.CoreV1Interface }

// noStreams reports that the fake does not stream lists, as the fake clientset does.
type noStreams struct{ typed.NodeInterface }

func (noStreams) IsWatchListSemanticsUnSupported() bool { return true }

func newFake() fakeAPI { return fakeAPI{fake.NewClientset().CoreV1()} }

// openOn opens a Store on a fake API.
func openOn(t *testing.T, client api, c Config) *Store {
	t.Helper()
	s, err := newStore(c, noStreams{client.Nodes()}, client.Pods(c.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openOnServer opens a Store on the API server, as the daemon does.
func openOnServer(t *testing.T, c Config) *Store {
	t.Helper()
	c.Kubeconfig = server.cluster.Kubeconfig
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// admin returns a client with all permissions. Its connections are closed when the test ends.
func admin(t *testing.T, c *testkube.Cluster) typed.CoreV1Interface {
	t.Helper()
	known, err := coreTypes()
	if err != nil {
		t.Fatal(err)
	}
	config, err := restConfig(Config{Kubeconfig: c.Kubeconfig}, known)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := typed.NewForConfigAndClient(config, transport)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// deleteNodes deletes all nodes of the cluster.
func deleteNodes(t *testing.T, client typed.CoreV1Interface) {
	t.Helper()
	if err := client.Nodes().DeleteCollection(context.Background(), metav1.DeleteOptions{},
		metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
}
