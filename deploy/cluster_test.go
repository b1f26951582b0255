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

// patience bounds every wait here. It is long because the machine may be busy; nothing waits it out.
const patience = 60 * time.Second

// image is a folder with the image's files, built by the first test that needs it.
var image struct {
	once sync.Once
	dir  string
	err  error
}

// buildImage returns the folder.
func buildImage(t testing.TB) string {
	t.Helper()
	image.once.Do(func() {
		if image.dir, image.err = os.MkdirTemp("", "weft-image"); image.err != nil {
			return
		}
		for name, pkg := range map[string]string{"flanneld": "weft/cmd/weftd", "install-conf": "weft/deploy/install-conf"} {
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

// startAPI runs a control plane on an address until the test ends, or skips the test.
func startAPI(t testing.TB, at netip.Addr) *testkube.Cluster {
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

// cluster is a lab whose nodes run the shipped manifest against a real API server.
type cluster struct {
	*lab.Lab
	api       *testkube.Cluster
	manifests []byte
	daemons   appsv1.DaemonSet
	account   string // folder with the service account's token
	nodes     map[string]*machine
}

// machine is one node of it.
type machine struct {
	*lab.Node
	volumes   map[string]string // the node's paths of the pod's volumes
	daemon    *lab.Process
	installer *lab.Process
}

// newCluster applies an overlay and makes the Node objects, which get their pod CIDRs from the real controller.
func newCluster(t testing.TB, overlay string, o lab.Options) *cluster {
	t.Helper()
	if overlay == "udp" {
		lab.SkipWithoutTUN(t)
	}
	c := &cluster{Lab: lab.Start(t, o), manifests: kustomize(t, filepath.Join("kubernetes", "overlays", overlay)), nodes: map[string]*machine{}}
	c.api = startAPI(t, c.Root.Addr)
	apply(t, c.api, c.manifests, false)
	c.daemons = daemonSet(t, c.manifests)
	c.account = c.serviceAccount(t)
	for _, n := range c.Nodes {
		if err := c.api.AddNode(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
		c.nodes[n.Name] = &machine{Node: n, volumes: c.volumes(t, n)}
	}
	return c
}

// serviceAccount lays the manifest's own account where a container sees it.
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
	for name, content := range map[string]string{"token": token, "ca.crt": string(ca), "namespace": c.daemons.Namespace} {
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

// volumes makes a node's paths for the pod's volumes.
func (c *cluster) volumes(t testing.TB, n *lab.Node) map[string]string {
	t.Helper()
	paths := map[string]string{}
	for _, v := range c.daemons.Spec.Template.Spec.Volumes {
		made := "" // where a folder of the host is for this process
		switch {
		case v.ConfigMap != nil:
			paths[v.Name] = t.TempDir()
			projectConfigMap(t, paths[v.Name], configMap(t, c.manifests))
		case v.HostPath == nil:
			t.Fatalf("volume %s is of an unknown kind", v.Name)
		case strings.HasPrefix(v.HostPath.Path, "/run/"):
			paths[v.Name] = v.HostPath.Path // the node has a /run of its own
			made = n.Path(strings.TrimPrefix(v.HostPath.Path, "/run/"))
		case *v.HostPath.Type == corev1.HostPathCharDev:
			paths[v.Name] = v.HostPath.Path
		default:
			paths[v.Name] = filepath.Join(t.TempDir(), v.HostPath.Path)
			made = paths[v.Name]
		}
		if made != "" && *v.HostPath.Type == corev1.HostPathDirectoryOrCreate {
			if err := os.MkdirAll(made, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return paths
}

// projectConfigMap writes a config map's files as the kubelet does: through a link that is swapped, so that all of them
// change at once.
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
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
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

// run starts one of the pod's containers on a node.
func (c *cluster) run(t testing.TB, m *machine, name string) *lab.Process {
	t.Helper()
	for _, spec := range c.daemons.Spec.Template.Spec.Containers {
		if spec.Name != name {
			continue
		}
		fields := map[string]string{"spec.nodeName": m.Name}
		return describe(t, spec, fields, buildImage(t), m.volumes).start(t, m.Node, c.account, c.apiEnv()...)
	}
	t.Fatalf("the manifest has no container %s", name)
	return nil
}

// apiEnv is how a pod finds the API server.
func (c *cluster) apiEnv() []string {
	api := netip.MustParseAddrPort(strings.TrimPrefix(c.api.URL, "https://"))
	return []string{"KUBERNETES_SERVICE_HOST=" + api.Addr().String(), fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", api.Port())}
}

// start runs the pod on a node.
func (c *cluster) start(t testing.TB, m *machine) {
	t.Helper()
	m.daemon, m.installer = c.run(t, m, "weft"), c.run(t, m, "install-cni")
}

// up brings all nodes up and waits until they are ready.
func (c *cluster) up(t testing.TB) {
	t.Helper()
	if err := c.api.AllocateCIDRs(configNetwork(t, configMap(t, c.manifests)["net-conf.json"])); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.nodes {
		c.start(t, m)
	}
	for _, m := range c.nodes {
		c.ready(t, m)
	}
}

// probe asks a node's health server, as the manifest's probes do.
func (c *cluster) probe(ctx context.Context, m *machine, probe *corev1.Probe) error {
	ports := c.daemons.Spec.Template.Spec.Containers[0].Ports
	if len(ports) != 1 || probe.HTTPGet.Port.StrVal != ports[0].Name {
		return fmt.Errorf("the probe is of port %v, the container has %v", probe.HTTPGet.Port, ports)
	}
	url := fmt.Sprintf("http://%s:%d%s", m.Addr, ports[0].ContainerPort, probe.HTTPGet.Path)
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	answer, err := client.Do(q)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("%s: %s", answer.Status, b))
	}
	return err
}

// weft is the daemon's container in the manifest.
func (c *cluster) weft() corev1.Container { return c.daemons.Spec.Template.Spec.Containers[0] }

// ready waits for a node's readiness probe.
func (c *cluster) ready(t testing.TB, m *machine) {
	t.Helper()
	await(t, m.Name+" to be ready", func() error {
		if !m.daemon.Running() {
			t.Fatalf("%s: the daemon has ended", m.Name)
		}
		return c.probe(t.Context(), m, c.weft().ReadinessProbe)
	})
}

// await waits until ok returns nil.
func await(t testing.TB, what string, ok func() error) {
	t.Helper()
	if err := lab.Await(t.Context(), patience, what, ok); err != nil {
		t.Fatal(err)
	}
}

// node reads a node's object.
func (c *cluster) node(t testing.TB, name string) testkube.Node {
	t.Helper()
	n, err := c.api.Node(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// attach gives every node's pods their addresses and returns when all of them reach each other.
func (c *cluster) attach(t testing.TB) {
	t.Helper()
	for _, m := range c.nodes {
		c.attachNode(t, m)
	}
	c.reach(t)
}

func (c *cluster) attachNode(t testing.TB, m *machine) {
	t.Helper()
	env, err := subnetenv.Read(m.Path("flannel/subnet.env"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Attach(env); err != nil {
		t.Fatal(err)
	}
}

// reach waits until every pod reaches the pods of every other node.
func (c *cluster) reach(t testing.TB) {
	t.Helper()
	for _, from := range c.nodes {
		for _, to := range c.nodes {
			if from == to {
				continue
			}
			for _, pod := range to.Pods {
				await(t, from.Pods[0].Name+" to reach "+pod.Name, func() error { return reaches(t.Context(), from.Pods[0], pod) })
			}
		}
	}
}

func reaches(ctx context.Context, from, to *lab.Pod) error {
	for _, at := range []netip.Addr{to.Addr, to.Addr6} {
		if !at.IsValid() {
			continue
		}
		r, err := from.Ping(ctx, at, lab.Ping{Count: 1, Timeout: 300 * time.Millisecond})
		if err == nil && r.Received == 0 {
			err = fmt.Errorf("no answer from %s (%+v)", at, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
