package kube

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"

	"weft/lease"
	"weft/lease/storetest"
)

// waitTimeout bounds every wait of these tests.
const waitTimeout = 20 * time.Second

// startManager runs a Manager until the test ends and returns a channel of its states.
func startManager(t *testing.T, s *Store, r lease.Request) (states <-chan lease.State, m *lease.Manager) {
	t.Helper()
	m = lease.NewManager(s, r, lease.Options{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	reports := make(chan lease.State, 1000)
	var done sync.WaitGroup
	done.Go(func() {
		if err := m.Run(ctx, func(s lease.State) { reports <- s }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return reports, m
}

// waitState waits for a state that satisfies ok and returns it.
func waitState(t *testing.T, states <-chan lease.State, what string, ok func(lease.State) bool) lease.State {
	t.Helper()
	limit := time.After(waitTimeout)
	var s lease.State
	for {
		select {
		case s = <-states:
			if ok(s) {
				return s
			}
		case <-limit:
			t.Fatalf("timeout waiting for %s, state %+v", what, s)
		}
	}
}

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(waitTimeout)
	for tick := time.NewTicker(5 * time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("timeout waiting for %s", what)
		}
	}
}

// requestOf returns the request of node 0 with a network config.
func requestOf(t *testing.T, conf string) lease.Request {
	return lease.Request{Network: network(t, conf), Attrs: attrsOf(0)}
}

func isHeld(s lease.State) bool { return s.Held && s.Connected }

// annotationOf returns an annotation of a node. name is without the prefix.
func annotationOf(t *testing.T, client api, node, name string) string {
	t.Helper()
	n, err := client.Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n.Annotations[FlannelPrefix+"/"+name]
}

// forbidGet is an API whose role permits only to list nodes.
type forbidGet struct{ noStreams }

func (f forbidGet) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Node, error) {
	return nil, apierrors.NewForbidden(corev1.Resource("nodes"), name, nil)
}

func (f forbidGet) List(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error) {
	all, err := f.noStreams.List(ctx, o)
	if o.FieldSelector != "" && err == nil { // the fake ignores it
		all.Items = slices.DeleteFunc(all.Items, func(n corev1.Node) bool {
			return o.FieldSelector != "metadata.name="+n.Name
		})
	}
	return all, err
}

func TestNodeWithoutGetPermission(t *testing.T) {
	client := newFake()
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, netConf)})
	s.nodes = forbidGet{noStreams{client.Nodes()}}
	if _, err := s.NodeHints(t.Context()); !errors.Is(err, lease.ErrNoSubnet) {
		t.Errorf("without a Node: %v", err)
	}
	tc := testCluster{client: client}
	tc.create(t, newNode("m", "10.244.8.0/24"))
	tc.create(t, newNode("n", "10.244.7.0/24"))
	l, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err != nil || l.Subnet.String() != "10.244.7.0/24" {
		t.Errorf("got %+v, %v", l, err)
	}
}

func TestClaimWaitsForNode(t *testing.T) {
	client := newFake()
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	states, _ := startManager(t, s, requestOf(t, netConf))
	waits := func(text string) func(lease.State) bool {
		return func(s lease.State) bool {
			return errors.Is(s.Err, lease.ErrNoSubnet) && strings.Contains(s.Err.Error(), text)
		}
	}
	waitState(t, states, "the missing node", waits("node n is not in the cluster yet"))
	tc := testCluster{client: client}
	tc.create(t, newNode("n"))
	waitState(t, states, "the missing podCIDR", waits("node n has no IPv4 podCIDR"))
	setCIDRs(t, client, "n", "10.244.7.0/24")
	if l := waitState(t, states, "the lease", isHeld).Self; l.Subnet != netip.MustParsePrefix("10.244.7.0/24") ||
		!l.Expires.IsZero() {
		t.Errorf("got %+v", l)
	}
}

func setCIDRs(t *testing.T, client api, node string, cidrs ...string) {
	t.Helper()
	n, err := client.Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Spec.PodCIDR, n.Spec.PodCIDRs = cidrs[0], cidrs
	if _, err := client.Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestOwnNodeChanges(t *testing.T) {
	client := newFake()
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	states, _ := startManager(t, s, requestOf(t, netConf))
	waitState(t, states, "the lease", isHeld)

	tc.annotate(t, "n", FlannelPrefix+"/public-ip-overwrite", `"198.51.100.1"`)
	over := netip.MustParseAddr("198.51.100.1")
	waitState(t, states, "the overwritten address",
		func(s lease.State) bool { return isHeld(s) && s.Self.PublicIP == over })
	if got := annotationOf(t, client, "n", "public-ip"); got != over.String() {
		t.Errorf("public-ip is %q", got)
	}
	tc.annotate(t, "n", FlannelPrefix+"/public-ip-overwrite", `null`)
	waitState(t, states, "the original address",
		func(s lease.State) bool { return isHeld(s) && s.Self.PublicIP == attrsOf(0).PublicIP })

	tc.annotate(t, "n", FlannelPrefix+"/public-ip", `"203.0.113.9"`)
	eventually(t, "restoring the changed address", func() bool {
		return annotationOf(t, client, "n", "public-ip") == attrsOf(0).PublicIP.String()
	})

	if err := client.Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if gone := waitState(t, states, "the loss",
		func(s lease.State) bool { return !s.Held }); !gone.Self.Subnet.IsValid() {
		t.Error("lost lease has no subnet")
	}
	tc.create(t, newNode("n", "10.244.8.0/24"))
	waitState(t, states, "the new podCIDR", func(s lease.State) bool {
		return isHeld(s) && s.Self.Subnet == netip.MustParsePrefix("10.244.8.0/24")
	})
}

func TestPeerChangesBothFamilies(t *testing.T) {
	client := newFake()
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24", "fd00:10:244:7::/64"))
	peer := annotatedNode(map[string]string{"kube-subnet-manager": "true", "backend-type": "vxlan",
		"public-ip":    "192.0.2.50",
		"backend-data": `{"VNI":1}`, "public-ipv6": "2001:db8::50", "backend-v6-data": `{"VNI":1}`}, "10.244.50.0/24",
		"fd00:10:244:50::/64")
	peer.Name = "peer"
	tc.create(t, peer)
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, dualConf), Log: slog.New(slog.DiscardHandler)})
	r := requestOf(t, dualConf)
	r.Attrs.PublicIPv6 = netip.MustParseAddr("2001:db8::1")
	states, _ := startManager(t, s, r)
	is := func(ok func(lease.Lease) bool) func(lease.State) bool {
		return func(s lease.State) bool {
			for _, l := range lease.List(s.All) {
				if l.Node == "peer" && ok(l) {
					return true
				}
			}
			return false
		}
	}
	waitState(t, states, "the peer",
		is(func(l lease.Lease) bool { return l.PublicIPv6 == netip.MustParseAddr("2001:db8::50") }))
	tc.annotate(t, "peer", FlannelPrefix+"/public-ipv6", `"2001:db8::51"`)
	waitState(t, states, "the IPv6 address",
		is(func(l lease.Lease) bool { return l.PublicIPv6 == netip.MustParseAddr("2001:db8::51") }))
	tc.annotate(t, "peer", FlannelPrefix+"/backend-v6-data", `"{\"VNI\":2}"`)
	waitState(t, states, "the IPv6 data",
		is(func(l lease.Lease) bool { return string(l.BackendV6Data) == `{"VNI":2}` }))
	tc.annotate(t, "peer", FlannelPrefix+"/public-ip", `"192.0.2.51"`)
	waitState(t, states, "the IPv4 address",
		is(func(l lease.Lease) bool { return l.PublicIP == netip.MustParseAddr("192.0.2.51") }))
	setCIDRs(t, client, "peer", "10.244.60.0/24", "fd00:10:244:60::/64")
	waitState(t, states, "the podCIDRs",
		is(func(l lease.Lease) bool { return l.Subnet == netip.MustParsePrefix("10.244.60.0/24") }))
}

func TestNodeNameFromPod(t *testing.T) {
	client := newFake()
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	conf := writeConf(t, netConf)
	if _, err := newStore(Config{NetworkFile: conf, Pod: "p"}, client.Nodes(), client.Pods("")); err == nil {
		t.Error("store opened without a node name")
	}
	s := openOn(t, client, Config{Pod: "p", Namespace: "kube-system", NetworkFile: conf,
		Log: slog.New(slog.DiscardHandler)})
	if _, err := s.Claim(t.Context(), requestOf(t, netConf)); err == nil ||
		!strings.Contains(err.Error(), "kube-system/p") {
		t.Errorf("without the pod: %v", err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "n"}}
	if _, err := client.Pods("kube-system").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err != nil || l.Node != "n" {
		t.Errorf("got %+v, %v", l, err)
	}
}

func TestNodeHints(t *testing.T) {
	client := newFake()
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	if _, err := s.NodeHints(t.Context()); !errors.Is(err, lease.ErrNoSubnet) {
		t.Errorf("without a node: %v", err)
	}
	tc := testCluster{client: client}
	// Any order of keys, and more keys than flannel's string parser accepts.
	data := `{"VtepMAC":"0a:00:00:00:00:01","VNI":1,"GBP":"no"}`
	n := annotatedNode(map[string]string{"node-public-ip": "198.51.100.1", "public-ip": "192.0.2.1",
		"backend-type": "vxlan",
		"backend-data": data, "kube-subnet-manager": "true"}, "10.244.7.0/24")
	tc.create(t, n)
	got, err := s.NodeHints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.PublicIP != netip.MustParseAddr("198.51.100.1") || got.PublicIPv6.IsValid() {
		t.Errorf("public addresses %v and %v", got.PublicIP, got.PublicIPv6)
	}
	var vtep struct{ VtepMAC string }
	if err := json.Unmarshal(got.Previous.BackendData, &vtep); err != nil || vtep.VtepMAC != "0a:00:00:00:00:01" ||
		got.Previous.BackendType != "vxlan" {
		t.Errorf("previous: %+v, %v", got.Previous, err)
	}
	tc.annotate(t, "n", FlannelPrefix+"/node-public-ip", `"2001:db8::1"`)
	if _, err := s.NodeHints(t.Context()); err == nil || !strings.Contains(err.Error(), "node-public-ip") {
		t.Errorf("an IPv6 address as node-public-ip: %v", err)
	}
}

// outage is an API server whose node calls fail while it is down.
type outage struct {
	fakeAPI
	mu      sync.Mutex
	away    bool
	watches []*stoppableWatch
}

func (o *outage) Nodes() typed.NodeInterface { return outageNodes{o.fakeAPI.Nodes(), o} }

type outageNodes struct {
	typed.NodeInterface
	o *outage
}

var errAway = apierrors.NewServiceUnavailable("away")

func (n outageNodes) List(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error) {
	n.o.mu.Lock()
	away := n.o.away
	n.o.mu.Unlock()
	if away {
		return nil, errAway
	}
	return n.NodeInterface.List(ctx, o)
}

func (n outageNodes) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := n.NodeInterface.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	n.o.mu.Lock()
	defer n.o.mu.Unlock()
	if n.o.away {
		w.Stop()
		return nil, errAway
	}
	c := &stoppableWatch{Interface: w, out: make(chan watch.Event), stop: make(chan struct{})}
	go c.run()
	n.o.watches = append(n.o.watches, c)
	return c, nil
}

// set starts or ends the outage.
func (o *outage) set(away bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = away
	for _, w := range o.watches {
		w.Stop()
	}
	o.watches = nil
}

// stoppableWatch is a watch that ends from either side.
type stoppableWatch struct {
	watch.Interface
	out  chan watch.Event
	stop chan struct{}
	once sync.Once
}

func (c *stoppableWatch) run() {
	defer close(c.out)
	defer c.Interface.Stop()
	for {
		select {
		case e := <-c.Interface.ResultChan():
			select {
			case c.out <- e:
			case <-c.stop:
				return
			}
		case <-c.stop:
			return
		}
	}
}

func (c *stoppableWatch) ResultChan() <-chan watch.Event { return c.out }
func (c *stoppableWatch) Stop()                          { c.once.Do(func() { close(c.stop) }) }

func TestOutageFake(t *testing.T) {
	o := &outage{fakeAPI: newFake()}
	tc := testCluster{client: o.fakeAPI}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s := openOn(t, o, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	states, _ := startManager(t, s, requestOf(t, netConf))
	waitState(t, states, "the lease", isHeld)
	o.set(true)
	away := waitState(t, states, "the outage", func(s lease.State) bool { return !s.Connected })
	if !away.Held || away.Err == nil {
		t.Errorf("during the outage: held %v, error %v", away.Held, away.Err)
	}
	missed := tc.add(t)
	o.set(false)
	waitState(t, states, "the change during the outage", func(s lease.State) bool {
		for _, l := range lease.List(s.All) {
			if l.Node == missed.Node {
				return isHeld(s)
			}
		}
		return false
	})
}

func TestWatchCoalescesChanges(t *testing.T) {
	client := newFake()
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	if _, err := s.Claim(t.Context(), requestOf(t, netConf)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const peers = 60
	stuck, first := make(chan struct{}), true
	last := make(chan int, 1000)
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Watch(ctx, func(s lease.Snapshot) {
			last <- s.Leases.Len()
			if first {
				first = false
				<-stuck // a busy caller
			}
		}); err != nil {
			t.Error(err)
		}
	})
	<-last
	for range peers {
		tc.add(t)
	}
	close(stuck)
	deliveries := 0
	for n := 0; n != peers+1; {
		select {
		case n = <-last:
			deliveries++
		case <-time.After(waitTimeout):
			t.Fatalf("%d leases after %d deliveries", n, deliveries)
		}
	}
	cancel()
	done.Wait()
	if deliveries > peers/2 {
		t.Errorf("%d deliveries of %d changes during a busy callback", deliveries, peers)
	}
}

func TestRenewOtherPodCIDRs(t *testing.T) {
	client := newFake()
	tc := testCluster{client: client}
	tc.create(t, newNode("n", "10.244.7.0/24"))
	s := openOn(t, client, Config{Node: "n", NetworkFile: writeConf(t, netConf), Log: slog.New(slog.DiscardHandler)})
	l, err := s.Claim(t.Context(), requestOf(t, netConf))
	if err != nil {
		t.Fatal(err)
	}
	setCIDRs(t, client, "n", "10.244.9.0/24")
	if _, err := s.Renew(t.Context(), l); !errors.Is(err, lease.ErrLost) ||
		!strings.Contains(err.Error(), "10.244.9.0/24") {
		t.Errorf("with another podCIDR: %v", err)
	}
	if err := client.Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Renew(t.Context(), l); !errors.Is(err, lease.ErrLost) {
		t.Errorf("without a node: %v", err)
	}
}

func TestStoreFake(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		client := newFake()
		tc := testCluster{client: client, open: func(t *testing.T, c Config) *Store { return openOn(t, client, c) }}
		return tc.harness(t)
	})
}

func TestStoreAPIServer(t *testing.T) {
	c := startServer(t)
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		client := admin(t, c)
		deleteNodes(t, client)
		tc := testCluster{client: client, open: openOnServer}
		return tc.harness(t)
	})
}
