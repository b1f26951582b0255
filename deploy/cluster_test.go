package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"weft/deploy/lab"
	"weft/lease/kube/testkube"
	"weft/lease/subnetenv"
)

// waitTimeout bounds every wait of these tests. It is long because the machine may be busy.
const waitTimeout = 60 * time.Second

// image is the directory with the image's files, built by the first test that needs it.
var image struct {
	once sync.Once
	dir  string
	err  error
}

// buildImageDir builds the image's files and returns their directory.
func buildImageDir(t testing.TB) string {
	t.Helper()
	image.once.Do(func() {
		if image.dir, image.err = os.MkdirTemp("", "weft-image"); image.err != nil {
			return
		}
		for name, pkg := range map[string]string{"flanneld": "weft/cmd/weftd",
			"install-conf": "weft/deploy/install-conf"} {
			cmd := exec.Command("go", "build", "-o", filepath.Join(image.dir, "opt", "bin", name), pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				image.err = fmt.Errorf("build %s: %w\n%s", pkg, err, out)
			}
		}
	})
	if image.err != nil {
		t.Fatal(image.err)
	}
	return image.dir
}

// startControlPlane runs a control plane on an address until the test ends, or skips the test.
func startControlPlane(t testing.TB, at netip.Addr) *testkube.Cluster {
	t.Helper()
	c, err := testkube.Start(at, t.TempDir())
	if errors.Is(err, testkube.ErrNoBinary) {
		t.Skipf("NOT TESTED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// cluster is a lab whose nodes run the shipped manifest with a real API server.
type cluster struct {
	*lab.Lab
	api       *testkube.Cluster
	manifests []byte
	daemons   appsv1.DaemonSet
	account   string // directory with the service account's token
	nodes     map[string]*clusterNode
}

// clusterNode is a node of a cluster.
type clusterNode struct {
	*lab.Node
	volumes   map[string]string // host paths of the pod's volumes by name
	daemon    *lab.Process
	installer *lab.Process
}

// newCluster applies an overlay and creates the Node objects, to which the real controller assigns
// pod CIDRs.
func newCluster(t testing.TB, overlay string, o lab.Options) *cluster {
	t.Helper()
	if overlay == "udp" {
		lab.SkipWithoutTUN(t)
	}
	manifests := kustomize(t, filepath.Join("kubernetes", "overlays", overlay))
	return newClusterOf(t, manifests, o, func(api *testkube.Cluster) { apply(t, api, manifests, false) })
}

// newClusterOf is newCluster for manifests that install passes to the API server.
func newClusterOf(
	t testing.TB, manifests []byte, o lab.Options, install func(*testkube.Cluster),
) *cluster {
	t.Helper()
	c := &cluster{Lab: lab.Start(t, o), nodes: map[string]*clusterNode{}, manifests: manifests}
	c.api = startControlPlane(t, c.Root.Addr)
	install(c.api)
	c.daemons = daemonSet(t, c.manifests)
	c.account = c.serviceAccount(t)
	for _, n := range c.Nodes {
		if err := c.api.AddNode(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
		c.nodes[n.Name] = &clusterNode{Node: n, volumes: c.volumes(t, n)}
	}
	return c
}

// serviceAccount writes the credentials of the manifest's service account to a directory, as a
// container sees them.
func (c *cluster) serviceAccount(t testing.TB) string {
	t.Helper()
	spec := c.daemons.Spec.Template.Spec
	token, err := c.api.Token(t.Context(), c.daemons.Namespace, spec.ServiceAccountName)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.api.CA)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"token": token, "ca.crt": string(ca),
		"namespace": c.daemons.Namespace} {
		writeFile(t, filepath.Join(dir, name), content)
	}
	return dir
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// volumes creates the host paths of the pod's volumes on a node.
func (c *cluster) volumes(t testing.TB, n *lab.Node) map[string]string {
	t.Helper()
	paths := map[string]string{}
	for _, v := range c.daemons.Spec.Template.Spec.Volumes {
		dir := "" // the host path as seen by this process
		switch {
		case v.ConfigMap != nil:
			paths[v.Name] = t.TempDir()
			projectConfigMap(t, paths[v.Name], configMap(t, c.manifests))
		case v.HostPath == nil:
			t.Fatalf("volume %s: unsupported type", v.Name)
		case strings.HasPrefix(v.HostPath.Path, "/run/"):
			paths[v.Name] = v.HostPath.Path // each node has its own /run
			dir = n.Path(strings.TrimPrefix(v.HostPath.Path, "/run/"))
		case *v.HostPath.Type == corev1.HostPathCharDev:
			paths[v.Name] = v.HostPath.Path
		default:
			paths[v.Name] = filepath.Join(t.TempDir(), v.HostPath.Path)
			dir = paths[v.Name]
		}
		switch {
		case dir == "":
		case *v.HostPath.Type == corev1.HostPathFileOrCreate:
			writeFile(t, dir, "")
		case *v.HostPath.Type == corev1.HostPathDirectoryOrCreate:
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return paths
}

// projectConfigMap writes the files of a ConfigMap as the kubelet does: a symbolic link is
// replaced, so that all files change at once.
func projectConfigMap(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	version, err := os.MkdirTemp(dir, "..version")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(version, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		writeFile(t, filepath.Join(version, name), content)
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil &&
			!errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Base(version), filepath.Join(dir, "..data.new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data.new"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// startContainer starts one of the pod's containers on a node.
func (c *cluster) startContainer(t testing.TB, node *clusterNode, name string) *lab.Process {
	t.Helper()
	for _, spec := range c.daemons.Spec.Template.Spec.Containers {
		if spec.Name != name {
			continue
		}
		fields := map[string]string{"spec.nodeName": node.Name}
		return newContainer(t, spec, fields, buildImageDir(t), node.volumes).start(t, node.Node, c.account,
			c.apiServerEnv()...)
	}
	t.Fatalf("the manifest has no container %s", name)
	return nil
}

// apiServerEnv returns the variables by which a pod finds the API server.
func (c *cluster) apiServerEnv() []string {
	api := netip.MustParseAddrPort(strings.TrimPrefix(c.api.URL, "https://"))
	return []string{"KUBERNETES_SERVICE_HOST=" + api.Addr().String(),
		fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", api.Port())}
}

// startPod starts the pod on a node.
func (c *cluster) startPod(t testing.TB, node *clusterNode) {
	t.Helper()
	for _, spec := range c.daemons.Spec.Template.Spec.Containers {
		if p := c.startContainer(t, node, spec.Name); spec.Name == "weft" {
			node.daemon = p
		} else {
			node.installer = p
		}
	}
}

// startAll starts the pod on all nodes and waits until they are ready.
func (c *cluster) startAll(t testing.TB) {
	t.Helper()
	if err := c.api.AllocateCIDRs(podNetworks(t, configMap(t, c.manifests)["net-conf.json"])); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.nodes {
		c.startPod(t, node)
	}
	for _, node := range c.nodes {
		c.waitReady(t, node)
	}
}

// runProbe runs one of the manifest's HTTP probes on a node.
func (c *cluster) runProbe(ctx context.Context, node *clusterNode, probe *corev1.Probe) error {
	ports := c.daemons.Spec.Template.Spec.Containers[0].Ports
	if len(ports) != 1 || probe.HTTPGet.Port.StrVal != ports[0].Name {
		return fmt.Errorf("probe of port %v, but the container has %v", probe.HTTPGet.Port, ports)
	}
	at := netip.AddrPortFrom(node.Addr, uint16(ports[0].ContainerPort))
	url := fmt.Sprintf("http://%s%s", at, probe.HTTPGet.Path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("%s: %s", resp.Status, b))
	}
	return err
}

// daemonContainer returns the daemon's container of the manifest.
func (c *cluster) daemonContainer() corev1.Container {
	return c.daemons.Spec.Template.Spec.Containers[0]
}

// waitReady waits until a node's readiness probe succeeds.
func (c *cluster) waitReady(t testing.TB, node *clusterNode) {
	t.Helper()
	await(t, node.Name+" to be ready", func() error {
		if !node.daemon.Running() {
			t.Fatalf("%s: the daemon has exited", node.Name)
		}
		return c.runProbe(t.Context(), node, c.daemonContainer().ReadinessProbe)
	})
}

// await waits until ok returns nil.
func await(t testing.TB, desc string, ok func() error) {
	t.Helper()
	if err := lab.Await(t.Context(), waitTimeout, desc, ok); err != nil {
		t.Fatal(err)
	}
}

// nodeObject reads a Node object.
func (c *cluster) nodeObject(t testing.TB, name string) testkube.Node {
	t.Helper()
	n, err := c.api.Node(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// attachPods connects the pods of all nodes and waits until they reach each other.
func (c *cluster) attachPods(t testing.TB) {
	t.Helper()
	for _, node := range c.nodes {
		c.attachNode(t, node)
	}
	c.waitReachable(t)
}

// attachNode connects the pods of a node as its subnet.env specifies.
func (c *cluster) attachNode(t testing.TB, node *clusterNode) {
	t.Helper()
	env, err := subnetenv.Read(node.Path("flannel/subnet.env"))
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Attach(env); err != nil {
		t.Fatal(err)
	}
}

// waitReachable waits until the first pod of every node reaches all pods of every other node.
func (c *cluster) waitReachable(t testing.TB) {
	t.Helper()
	for _, from := range c.nodes {
		for _, to := range c.nodes {
			if from == to {
				continue
			}
			for _, pod := range to.Pods {
				await(t, from.Pods[0].Name+" to reach "+pod.Name, func() error {
					return pingPod(t.Context(), from.Pods[0], pod)
				})
			}
		}
	}
}

// pingPod pings every address of a pod once.
func pingPod(ctx context.Context, from, to *lab.Pod) error {
	for _, at := range []netip.Addr{to.Addr, to.Addr6} {
		if !at.IsValid() {
			continue
		}
		r, err := from.Ping(ctx, at, lab.Ping{Count: 1, Timeout: 300 * time.Millisecond})
		if err == nil && r.Received == 0 {
			err = fmt.Errorf("no reply from %s (%+v)", at, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
