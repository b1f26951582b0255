package cli

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"

	"weft/ctrl/conntest"
)

//go:embed conntest.yml
var conntestManifest string

// kubeTest tests a cluster of Kubernetes with a DaemonSet, through kubectl.
type kubeTest struct {
	kubectl string
	image   string
	port    uint16
	// problems receives warnings.
	problems io.Writer
}

const (
	testNamespace = "weft-test"
	// rolloutTimeout is the time that nodes have to pull the image and to start the pods.
	rolloutTimeout = 2 * time.Minute
	// podsAtOnce bounds the pods that test at a time.
	podsAtOnce = 8
	// removeTimeout bounds the removal of the namespace, which goes on in the cluster.
	removeTimeout = 10 * time.Second
)

// manifest returns the objects to apply.
func (k kubeTest) manifest() ([]byte, error) {
	t, err := template.New("manifest").Parse(conntestManifest)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct {
		Image    string
		Port     uint16
		Networks []string
	}{k.image, k.port, []string{"pod", "host"}})
	return b.Bytes(), err
}

// run runs kubectl with a standard input and returns its output.
func (k kubeTest) run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, k.kubectl, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", k.kubectl, strings.Join(args, " "), err,
			strings.TrimSpace(problems.String()))
	}
	return out.Bytes(), nil
}

// test applies the manifest, tests from every pod, and removes the namespace.
func (k kubeTest) test(ctx context.Context) (results []conntest.Result, err error) {
	if _, err := exec.LookPath(k.kubectl); err != nil {
		return nil, fmt.Errorf("--kubectl: %w", err)
	}
	manifest, err := k.manifest()
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		_, removed := k.run(ctx, nil, "delete", "namespace", testNamespace, "--ignore-not-found", "--wait=false")
		err = errors.Join(err, removed)
	}()
	if _, err := k.run(ctx, manifest, "apply", "-f", "-"); err != nil {
		return nil, err
	}
	for _, network := range []string{"pod", "host"} {
		_, err := k.run(ctx, nil, "rollout", "status", "daemonset/weft-test-"+network, "-n", testNamespace,
			"--timeout="+rolloutTimeout.String())
		if err != nil { // the other nodes are tested
			fmt.Fprintln(k.problems, "weft:", err)
		}
	}
	list, err := k.run(ctx, nil, "get", "pods,service", "-n", testNamespace, "-o", "json")
	if err != nil {
		return nil, err
	}
	pods, services, err := parseKubeList(list, k.port)
	if err != nil {
		return nil, err
	}
	return k.testFrom(ctx, pods, services)
}

// kubePod is a pod of the DaemonSets.
type kubePod struct {
	name, node       string
	host             bool // with the network of its node
	ready            bool
	addrs, nodeAddrs []netip.Addr // its addresses, and those of its node
}

// parseKubeList returns the pods and the addresses of the Service in kubectl's list.
func parseKubeList(list []byte, port uint16) (pods []kubePod, services []netip.AddrPort, err error) {
	var parsed struct {
		Items []struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct {
				NodeName    string
				HostNetwork bool
				ClusterIPs  []netip.Addr
			}
			Status struct {
				PodIPs     []struct{ IP netip.Addr }
				HostIPs    []struct{ IP netip.Addr }
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal(list, &parsed); err != nil {
		return nil, nil, fmt.Errorf("read kubectl's list: %w", err)
	}
	for _, item := range parsed.Items {
		if item.Kind == "Service" {
			for _, a := range item.Spec.ClusterIPs {
				services = append(services, netip.AddrPortFrom(a, port))
			}
			continue
		}
		p := kubePod{name: item.Metadata.Name, node: item.Spec.NodeName, host: item.Spec.HostNetwork}
		for _, c := range item.Status.Conditions {
			p.ready = p.ready || c.Type == "Ready" && c.Status == "True"
		}
		for _, ip := range item.Status.PodIPs {
			p.addrs = append(p.addrs, ip.IP)
		}
		for _, ip := range item.Status.HostIPs {
			p.nodeAddrs = append(p.nodeAddrs, ip.IP)
		}
		pods = append(pods, p)
	}
	return pods, services, nil
}

// kubeTargets returns a target per node.
func kubeTargets(pods []kubePod) []conntest.Target {
	byNode := map[string]*conntest.Target{}
	var names []string
	for _, p := range pods {
		t := byNode[p.node]
		if t == nil {
			t = &conntest.Target{Node: p.node}
			byNode[p.node] = t
			names = append(names, p.node)
		}
		if t.Host = p.nodeAddrs; len(t.Host) > 0 {
			t.Public = t.Host[0]
		}
		switch {
		case !p.ready:
			t.NoServer = "pod " + p.name + " is not ready"
		case !p.host:
			t.Pod = p.addrs
		}
	}
	slices.Sort(names)
	targets := make([]conntest.Target, 0, len(names))
	for _, name := range names {
		targets = append(targets, *byNode[name])
	}
	return targets
}

// testFrom tests from every pod to all other nodes.
func (k kubeTest) testFrom(
	ctx context.Context, pods []kubePod, services []netip.AddrPort,
) ([]conntest.Result, error) {
	targets := kubeTargets(pods)
	if len(targets) < 2 {
		return nil, errAlone
	}
	perPod := make([][]conntest.Result, len(pods))
	slots := make(chan struct{}, podsAtOnce)
	var group sync.WaitGroup
	for i, p := range pods {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			plan := testPlan{Node: p.node, Host: p.host, Port: k.port, Services: services}
			for _, t := range targets {
				if t.Node != p.node {
					plan.Targets = append(plan.Targets, t)
				}
			}
			var err error
			if perPod[i], err = k.testInPod(ctx, p, plan); err != nil {
				perPod[i] = []conntest.Result{conntest.NotRun(p.node, err)}
			}
		})
	}
	group.Wait()
	return slices.Concat(perPod...), ctx.Err()
}

// testInPod has one pod do its test.
func (k kubeTest) testInPod(
	ctx context.Context, p kubePod, plan testPlan,
) (results []conntest.Result, err error) {
	if !p.ready {
		return nil, fmt.Errorf("pod %s is not ready: kubectl describe pod -n %s %s", p.name,
			testNamespace, p.name)
	}
	stdin, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	out, err := k.run(ctx, stdin, "exec", "-i", "-n", testNamespace, p.name, "--",
		"/opt/bin/weft", "test", "run")
	if err == nil {
		err = json.Unmarshal(out, &results)
	}
	return results, err
}
