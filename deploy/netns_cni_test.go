package deploy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// cniEnv names the environment variable with the directory of the CNI programs.
const cniEnv = "WEFT_CNI"

// cniDir returns that directory, or skips the test.
func cniDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(cniEnv)
	if dir == "" {
		t.Skipf("NOT TESTED: CNI plugins: %s is not set; .ci/kube/cni builds them and prints the directory", cniEnv)
	}
	return dir
}

// cniResult is the result of a chain of plugins.
type cniResult struct {
	IPs []struct{ Address netip.Prefix }
}

// runCNI adds a pod to its node or deletes it through the plugins, as the kubelet does: with the
// unmodified config written by the installer, and the node's own files.
func runCNI(programs, verb string, node *clusterNode, pod *lab.Pod) (cniResult, error) {
	var out []byte
	err := node.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		for source, target := range map[string]string{node.Path("flannel"): "/run/flannel",
			node.Path("cni"): "/var/lib"} {
			if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(target, 0o755)); err != nil {
				return err
			}
			if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount %s: %w", target, err)
			}
		}
		cmd := exec.Command(filepath.Join(programs, "cnitool"), verb, "cbr0", filepath.Join("/run/netns", pod.Name))
		cmd.Env = append(os.Environ(), "CNI_PATH="+programs, "NETCONFPATH="+node.volumes["cni"],
			fmt.Sprintf(`CAP_ARGS={"portMappings":[{"hostPort":%d,"containerPort":%d,"protocol":"tcp"}]}`,
				hostPort, podPort))
		var err error
		if out, err = cmd.Output(); err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = fmt.Errorf("%w: %s%s", err, out, exit.Stderr)
			}
			return fmt.Errorf("cnitool %s %s: %w", verb, pod.Name, err)
		}
		return nil
	})
	var r cniResult
	if err == nil && verb == "add" {
		err = json.Unmarshal(out, &r)
	}
	return r, err
}

// hostPort of a node is forwarded to podPort of its pod.
const hostPort, podPort = 8080, 80

// addPods adds every node's pod through the plugins.
func (c *cluster) addPods(t testing.TB, programs string) {
	t.Helper()
	for _, node := range c.nodes {
		pod := node.Pods[0]
		r, err := runCNI(programs, "add", node, pod)
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range r.IPs {
			pod.Addr = ip.Address.Addr()
			podCIDR := netip.MustParsePrefix(c.nodeObject(t, node.Name).Spec.PodCIDR)
			if !podCIDR.Contains(pod.Addr) {
				t.Errorf("%s has %s, not in the pod CIDR", pod.Name, pod.Addr)
			}
		}
		if len(r.IPs) != 1 {
			t.Errorf("%s: %+v, want one address", pod.Name, r)
		}
	}
}

func TestNetnsCNIPlugins(t *testing.T) {
	programs := cniDir(t)
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			c.startAll(t)
			for _, node := range c.nodes {
				c.checkConflist(t, node)
			}
			c.addPods(t, programs)
			c.waitReachable(t)
			c.checkMTU(t)
			c.checkHostPort(t)
			node := c.nodes["node1"]
			before := node.Pods[0].Addr
			if _, err := runCNI(programs, "del", node, node.Pods[0]); err != nil {
				t.Fatal(err)
			}
			r, err := runCNI(programs, "add", node, node.Pods[0])
			if err != nil || len(r.IPs) != 1 || r.IPs[0].Address.Addr() == before {
				t.Fatalf("added again: %+v, %v (before: %s)", r, err, before)
			}
			node.Pods[0].Addr = r.IPs[0].Address.Addr()
			c.waitReachable(t)
		})
	}
}

// TestNetnsImagePlugins adds pods with the plugins that the manifest's init container installs.
func TestNetnsImagePlugins(t *testing.T) {
	root, cnitool := fullImageDir(t), filepath.Join(cniDir(t), "cnitool")
	c := newCluster(t, "vxlan", lab.Options{Nodes: 2})
	c.startAll(t)
	node := c.nodes["node1"]
	for _, spec := range c.daemons.Spec.Template.Spec.InitContainers {
		runToEnd(t, spec.Name, newContainer(t, spec, nil, root, node.volumes).start(t, node.Node, c.account))
	}
	programs := node.volumes["cni-plugin"]
	if err := os.Symlink(cnitool, filepath.Join(programs, "cnitool")); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.nodes {
		c.checkConflist(t, node)
	}
	c.addPods(t, programs)
	c.waitReachable(t)
	c.checkMTU(t)
	c.checkHostPort(t)
}

// checkMTU checks that pods have the MTU of subnet.env and that TCP works with it.
func (c *cluster) checkMTU(t *testing.T) {
	t.Helper()
	for _, node := range c.nodes {
		env, err := subnetenv.Read(node.Path("flannel/subnet.env"))
		if err != nil {
			t.Fatal(err)
		}
		if l, err := node.Pods[0].Link("eth0"); err != nil || l.MTU != env.MTU {
			t.Errorf("%s: MTU %d, %v, want %d", node.Pods[0].Name, l.MTU, err, env.MTU)
		}
	}
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	if err := lab.CheckTCP(t.Context(), from.NS, to.NS, to.Addr, 1<<20); err != nil {
		t.Error(err)
	}
}

// checkHostPort connects to a pod from another node through the host port of its node.
func (c *cluster) checkHostPort(t *testing.T) {
	t.Helper()
	server, client := c.Nodes[0], c.Nodes[1]
	l, err := server.Pods[0].Listen(server.Pods[0].Addr, podPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := client.Dial("tcp", netip.AddrPortFrom(server.Addr, hostPort))
	if err != nil {
		t.Errorf("host port: %v", err)
		return
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
