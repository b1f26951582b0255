package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/cmd/control"
	"weft/ctrl/conntest"
	"weft/dataplane/probe"
)

// testOptions are the flags of weft test.
type testOptions struct {
	asking
	port     uint16
	all      bool
	services []string
	kube     bool
	image    string
	kubectl  string
}

const testHelp = `
Tests the connectivity between the nodes and their pods. It sends packets from a pod
of its own, a network namespace with the highest free address of this node's subnet,
to a pod and to the host of each other node. Run "weft test serve" on the other
nodes first; a node without it is tested as far as its kernel answers, and reported.

  pod-pod    echo from pod to pod
  large      echo of the pods' MTU that must not be fragmented
  tcp        a MiB there and back, pod to pod, compared by SHA-256
  fragments  a UDP datagram of several fragments there and back, pod to pod
  pod-host   echo and TCP from a pod to the other node
  host-pod   echo and TCP from this node to a pod of the other node
  service    TCP from a pod to the address of a Service, with --service

With the fast path of the udp backend, each check is made twice: with packets that the
fast path may carry, and with packets that only the workers carry, as they do bulk
flows. It fails if either is lost.

With --kubernetes it runs on any machine with kubectl. It creates the namespace
weft-test with a Service and two DaemonSets, one of them with the network of the
host, tests from each of their pods to all other nodes, and removes the namespace.

The exit status is 1 if a check failed or could not be done.`

// newTest returns weft test.
func newTest() *cobra.Command {
	var o testOptions
	cmd := &cobra.Command{
		Use:   "test",
		Short: "test the connectivity between nodes and their pods",
		Long:  strings.TrimSpace(testHelp),
		Args:  Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := parseServices(o.services)
			if err != nil {
				return usageError{cmd, err}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			test := func() ([]conntest.Result, error) { return o.test(ctx, services) }
			if o.kube {
				switch {
				case o.image == "":
					return usageError{cmd, errors.New("--kubernetes needs the --image of weftd")}
				case o.all || services != nil:
					return usageError{cmd, errors.New("--kubernetes excludes --all and --service: " +
						"it tests from all nodes, and a Service of its own")}
				}
				test = func() ([]conntest.Result, error) {
					return kubeTest{o.kubectl, o.image, o.port, cmd.ErrOrStderr()}.test(ctx)
				}
			}
			results, err := test()
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), results)
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.Uint16Var(&o.port, "port", conntest.DefaultPort, "TCP and UDP `port` of weft test serve")
	f.BoolVar(&o.all, "all", false, "test from every node that runs weft test serve, too")
	f.StringArrayVar(&o.services, "service", nil,
		"`ADDRESS:PORT` of a Service that leads to weft test serve; repeatable")
	f.BoolVar(&o.kube, "kubernetes", false,
		"test from every node of a Kubernetes cluster, with pods in the namespace weft-test")
	f.StringVar(&o.image, "image", "", "`image` of weftd for the pods of --kubernetes")
	f.StringVar(&o.kubectl, "kubectl", "kubectl", "`path` of kubectl")
	cmd.AddCommand(newTestServe(), newTestAnswer(), newTestRun())
	return cmd
}

func parseServices(all []string) (services []netip.AddrPort, err error) {
	for _, s := range all {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return nil, fmt.Errorf("invalid --service %q: want ADDRESS:PORT", s)
		}
		services = append(services, a)
	}
	return services, nil
}

// print prints the results and returns the exit status.
func (o *testOptions) print(w io.Writer, results []conntest.Result) error {
	var err error
	if o.json {
		err = WriteJSON(w, struct {
			OK      bool              `json:"ok"`
			Results []conntest.Result `json:"results"`
		}{conntest.OK(results), results})
	} else {
		err = conntest.Text(w, results)
	}
	if err == nil && !conntest.OK(results) {
		return statusError(statusProblem)
	}
	return err
}

// errAlone means that there is nothing to test.
var errAlone = errors.New("there are no other nodes to test")

// test tests from this node, and with --all from the others.
func (o *testOptions) test(
	ctx context.Context, services []netip.AddrPort,
) (results []conntest.Result, err error) {
	node, err := o.thisNode(ctx)
	if err != nil {
		return nil, err
	}
	if len(node.Nodes) == 0 {
		return nil, errAlone
	}
	pod, err := conntest.NewPod(ctx, node.subnets(), node.MTU)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	targets := node.targets(ctx, o.port)
	results = conntest.Run(ctx, node.source(pod, o.port, services), targets)
	if o.all {
		results = append(results, runElsewhere(ctx, targets, o.port)...)
	}
	return results, ctx.Err()
}

// runElsewhere tests from each target that has a server, and adds a failed result for those that do
// not answer.
func runElsewhere(ctx context.Context, targets []conntest.Target, port uint16) []conntest.Result {
	all := make([][]conntest.Result, len(targets))
	var group sync.WaitGroup
	for i, t := range targets {
		if t.NoServer != "" {
			continue // the results of this node have it
		}
		group.Go(func() {
			var err error
			all[i], err = conntest.RunAt(ctx, netip.AddrPortFrom(t.Public, port))
			if err != nil {
				all[i] = []conntest.Result{conntest.NotRun(t.Node, err)}
			}
		})
	}
	group.Wait()
	var results []conntest.Result
	for _, r := range all {
		results = append(results, r...)
	}
	return results
}

// testedNode is this node and what its daemon knows of the others.
type testedNode struct{ control.Status }

// thisNode asks the daemon.
func (a *asking) thisNode(ctx context.Context) (testedNode, error) {
	s, err := a.client().Status(ctx)
	if err == nil && (s.Lease == nil || s.MTU == 0) {
		err = errors.New("the daemon has no lease yet: weft status names the reason")
	}
	return testedNode{s}, err
}

func (n testedNode) subnets() (all []netip.Prefix) {
	for _, s := range []netip.Prefix{n.Lease.Subnet, n.Lease.Subnet6} {
		if s.IsValid() {
			all = append(all, s)
		}
	}
	return all
}

func (n testedNode) source(
	pod *conntest.Pod, port uint16, services []netip.AddrPort,
) conntest.Source {
	source := conntest.Source{Node: n.Node, MTU: n.MTU, Port: port, Pod: pod, Host: conntest.Here{},
		Services: services}
	if t := n.Traffic; t != nil && t.FastPath.Active {
		source.Priority = probe.WorkerPriority
	}
	return source
}

// discoverTimeout bounds the search for the server of a node.
const discoverTimeout = 2 * time.Second

// targets returns the other nodes.
func (n testedNode) targets(ctx context.Context, port uint16) []conntest.Target {
	all := make([]conntest.Target, len(n.Nodes))
	var group sync.WaitGroup
	for i, other := range n.Nodes {
		group.Go(func() { all[i] = n.target(ctx, other, port) })
	}
	group.Wait()
	slices.SortFunc(all, func(a, b conntest.Target) int { return strings.Compare(a.Node, b.Node) })
	return all
}

// target asks the server of a node for its pod.
func (n testedNode) target(
	ctx context.Context, other control.Node, port uint16,
) conntest.Target {
	t := conntest.Target{Node: other.Name, Public: other.Public}
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	info, err := conntest.Discover(ctx, conntest.Here{}, netip.AddrPortFrom(other.Public, port))
	if err != nil {
		t.NoServer = fmt.Sprintf("weft test serve does not answer at %s: %s",
			netip.AddrPortFrom(other.Public, port), conntest.Describe(err))
	}
	t.Pod = info.Pod
	if info.Node != "" && t.Node == t.Public.String() { // the store has no names
		t.Node = info.Node
	}
	if n.Backend == "host-gw" {
		if t.Host = info.Host; err != nil {
			t.Host = []netip.Addr{other.Public}
		}
		return t
	}
	for _, s := range []netip.Prefix{other.Subnet, other.Subnet6} {
		if s.IsValid() {
			t.Host = append(t.Host, s.Masked().Addr())
		}
	}
	return t
}
