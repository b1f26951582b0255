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

// cniVariable names the environment variable with the folder of the CNI programs.
const cniVariable = "WEFT_CNI"

// cniPrograms is that folder, or skips the test.
func cniPrograms(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(cniVariable)
	if dir == "" {
		t.Skipf("NOT TESTED with real CNI plugins: %s is not set; .ci/kube/cni builds them and prints the folder", cniVariable)
	}
	return dir
}

// cniResult is what the chain of plugins answers.
type cniResult struct {
	IPs []struct{ Address netip.Prefix }
}

// cni has the plugins add a pod to its node or take it away, as the kubelet does: with the config that the installer wrote,
// unchanged, and the node's own files.
func cni(programs, verb string, m *machine, pod *lab.Pod) (cniResult, error) {
	var out []byte
	err := m.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		for source, target := range map[string]string{m.Path("flannel"): "/run/flannel", m.Path("cni"): "/var/lib"} {
			if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(target, 0o755)); err != nil {
				return err
			}
			if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount %s: %w", target, err)
			}
		}
		cmd := exec.Command(filepath.Join(programs, "cnitool"), verb, "cbr0", filepath.Join("/run/netns", pod.Name))
		cmd.Env = append(os.Environ(), "CNI_PATH="+programs, "NETCONFPATH="+m.volumes["cni"],
			fmt.Sprintf(`CAP_ARGS={"portMappings":[{"hostPort":%d,"containerPort":%d,"protocol":"tcp"}]}`, hostPort, podPort))
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

// hostPort of a node leads to podPort of its pod.
const hostPort, podPort = 8080, 80

// addPods adds every node's pod by the plugins, and takes them away when the test ends.
func (c *cluster) addPods(t testing.TB) {
	t.Helper()
	programs := cniPrograms(t)
	for _, m := range c.nodes {
		pod := m.Pods[0]
		r, err := cni(programs, "add", m, pod)
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range r.IPs {
			if pod.Addr = ip.Address.Addr(); !netip.MustParsePrefix(c.node(t, m.Name).Spec.PodCIDR).Contains(pod.Addr) {
				t.Errorf("%s got %s", pod.Name, pod.Addr)
			}
		}
		if len(r.IPs) != 1 {
			t.Errorf("%s got %+v", pod.Name, r)
		}
	}
}

func TestNetnsPodsOfRealPlugins(t *testing.T) {
	programs := cniPrograms(t)
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, lab.Options{Nodes: 3})
			c.up(t)
			for _, m := range c.nodes {
				c.checkConflist(t, m)
			}
			c.addPods(t)
			c.reach(t)
			c.checkMTU(t)
			c.checkHostPort(t)
			m := c.nodes["node1"]
			before := m.Pods[0].Addr
			if _, err := cni(programs, "del", m, m.Pods[0]); err != nil {
				t.Fatal(err)
			}
			r, err := cni(programs, "add", m, m.Pods[0])
			if err != nil || len(r.IPs) != 1 || r.IPs[0].Address.Addr() == before {
				t.Fatalf("added again: %+v, %v (before: %s)", r, err, before)
			}
			m.Pods[0].Addr = r.IPs[0].Address.Addr()
			c.reach(t)
		})
	}
}

// checkMTU holds that pods got the MTU of subnet.env, and that a packet of that size gets through.
func (c *cluster) checkMTU(t *testing.T) {
	t.Helper()
	for _, m := range c.nodes {
		env, err := subnetenv.Read(m.Path("flannel/subnet.env"))
		if err != nil {
			t.Fatal(err)
		}
		if l, err := m.Pods[0].Link("eth0"); err != nil || l.MTU != env.MTU {
			t.Errorf("%s: MTU %d, %v, want %d", m.Pods[0].Name, l.MTU, err, env.MTU)
		}
	}
	if err := lab.CheckTCP(t.Context(), c.Nodes[0].Pods[0].NS, c.Nodes[1].Pods[0].NS, c.Nodes[1].Pods[0].Addr, 1<<20); err != nil {
		t.Error(err)
	}
}

// checkHostPort reaches a pod by its node's address from another node.
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
