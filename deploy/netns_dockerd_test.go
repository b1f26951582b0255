package deploy_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// nodePort is the port of a node that is published for the container's port.
const nodePort = 8888

// dockerNode is a node with a weftd and a dockerd on the leased subnet, and a container named pod.
type dockerNode struct {
	*lab.Node
	docker *docker
	pod    netip.Addr
}

// TestNetnsDockerd runs an installed and a current dockerd on two nodes with the options of weft
// docker-opts. Containers must reach each other's ports under their own addresses, also after a
// restart of dockerd.
func TestNetnsDockerd(t *testing.T) {
	lab.SkipWithoutTUN(t)
	const rewrites = "would rewrite pods' sources between nodes; weftd's rules before it prevent that"
	for _, tt := range []struct {
		name       string
		find       func(*testing.T) string
		weftd      []string
		dockerOpts []string
		dockerd    []string
		prepare    func(*testing.T, *dockerNode) // before packets are sent
		note       string                        // in /status
	}{
		{name: "installed", find: installedDockerd, weftd: []string{"--ip-masq"}},
		{name: "installed and masquerading", find: installedDockerd, dockerOpts: []string{"-m"}, note: rewrites},
		{name: "current", find: currentDockerd, weftd: []string{"--ip-masq"}},
		{name: "current and masquerading", find: currentDockerd, dockerOpts: []string{"-m"}, note: rewrites},
		{name: "current with nftables", find: currentDockerd, weftd: []string{"--ip-masq"}, prepare: markForDocker,
			dockerd: []string{"--firewall-backend=nftables", "--bridge-accept-fwmark=0x10000/0x10000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			program := tt.find(t)
			nodes := startDockerNodes(t, program, tt.weftd, tt.dockerOpts, tt.dockerd)
			if tt.prepare != nil {
				tt.prepare(t, nodes[0])
				tt.prepare(t, nodes[1])
			}
			for i, n := range nodes {
				n.checkReaches(t, nodes[1-i])
				n.checkNote(t, tt.note)
			}
			d := nodes[1].docker
			d.stop()
			d.start(t)
			d.mustRun(t, "start", "pod")
			nodes[1].pod = d.containerAddress(t, "pod")
			nodes[0].checkReaches(t, nodes[1])
			nodes[1].checkReaches(t, nodes[0])
		})
	}
}

// markForDocker sets the mark with which dockerd's nftables rules accept packets, as docs/docker.md
// says.
func markForDocker(t *testing.T, n *dockerNode) {
	t.Helper()
	rules := `table ip weft-docker {
		chain forward {
			type filter hook forward priority mangle
			iifname != "docker0" oifname "docker0" ip saddr 10.5.0.0/16 meta mark set meta mark | 0x10000
		}
	}`
	err := n.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("nft: %w: %s", err, out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func installedDockerd(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("dockerd")
	if err != nil {
		t.Skipf("NOT TESTED: docker: %v", err)
	}
	return program
}

func currentDockerd(t *testing.T) string {
	t.Helper()
	program := os.Getenv("WEFT_DOCKERD")
	if program == "" {
		t.Skip("NOT TESTED: current dockerd: WEFT_DOCKERD is not set")
	}
	return program
}

// startDockerNodes starts a lab of two nodes.
func startDockerNodes(t *testing.T, program string, weftd, dockerOpts, dockerd []string) []*dockerNode {
	t.Helper()
	l := lab.Start(t, lab.Options{Nodes: 2, PodsPerNode: -1})
	etcd, err := testetcd.Start(testetcd.Config{Dir: filepath.Join(t.TempDir(), "etcd"),
		Listen: netip.AddrPortFrom(l.Root.Addr, 2379)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	if err := etcd.Put("/coreos.com/network/config", `{"Network": "10.5.0.0/16"}`); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(t.TempDir(), "weft")
	if out, err := exec.Command("go", "build", "-o", tool, "weft/cmd/weft").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	daemon := append([]string{filepath.Join(buildImageDir(t), "opt/bin/flanneld"),
		"--etcd-endpoints=" + etcd.Endpoint(), "--healthz-port=8081"}, weftd...)
	var nodes []*dockerNode
	for _, n := range l.Nodes {
		if _, err := n.Start(daemon); err != nil {
			t.Fatal(err)
		}
		env := n.Path("flannel/subnet.env")
		await(t, "subnet.env", func() error {
			_, err := subnetenv.Read(env)
			return err
		})
		options := n.Path("docker_opts.env")
		args := append([]string{"docker-opts", "-p", program, "-f", env, "-d", options}, dockerOpts...)
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v\n%s", err, out)
		}
		words := strings.Fields(strings.Trim(readSettings(t, options)["DOCKER_OPTS"][0], `" `))
		if program == os.Getenv("WEFT_DOCKERD") {
			// The installed docker-proxy lacks flags, the installed runc may lack time namespaces.
			words = append(words, "--feature=time-namespaces=false",
				"--userland-proxy-path="+filepath.Join(filepath.Dir(program), "docker-proxy"))
		}
		d := runDockerd(t, n, program, append(words, dockerd...)...)
		d.importImage(t)
		d.mustRun(t, "run", "-d", "--name=pod", "--stop-signal=KILL", fmt.Sprintf("--publish=%d:%d", nodePort, port),
			"weft:dev", "/opt/bin/install-conf", "--ready=http://127.0.0.1:1/", "a", "b")
		nodes = append(nodes, &dockerNode{n, d, d.containerAddress(t, "pod")})
	}
	return nodes
}

// importImage imports the image's files.
func (d *docker) importImage(t *testing.T) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	if out, err := exec.Command("tar", "-cf", archive, "-C", buildImageDir(t), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.mustRun(t, "import", archive, "weft:dev")
}

// containerAddress returns the address of a container on the default bridge.
func (d *docker) containerAddress(t *testing.T, name string) netip.Addr {
	t.Helper()
	address, err := netip.ParseAddr(d.mustRun(t, "inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", name))
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// checkReaches checks that the node's container reaches the peer's at a published and at another
// port of its own address, and at the published port of the peer's node.
func (n *dockerNode) checkReaches(t *testing.T, peer *dockerNode) {
	t.Helper()
	for _, tt := range []struct {
		name       string
		at, listen netip.AddrPort
		source     netip.Addr
	}{
		{"published port", netip.AddrPortFrom(peer.pod, port), netip.AddrPortFrom(peer.pod, port), n.pod},
		{"unpublished port", netip.AddrPortFrom(peer.pod, port+1), netip.AddrPortFrom(peer.pod, port+1), n.pod},
		{"port of the node", netip.AddrPortFrom(peer.Addr, nodePort), netip.AddrPortFrom(peer.pod, port), n.Addr},
	} {
		await(t, n.Name+"'s container to reach the "+tt.name, func() error {
			seen, err := peer.docker.acceptFrom(t, "pod", tt.listen, func() error {
				return n.docker.inContainer(t, "pod", func() error { return dial(tt.at) })
			})
			if err == nil && seen != tt.source {
				err = fmt.Errorf("container %s connects from %s", n.pod, seen)
			}
			return err
		})
	}
}

// checkNote checks the notes on packet filter rules in the node's /status.
func (n *dockerNode) checkNote(t *testing.T, want string) {
	t.Helper()
	await(t, "note in /status", func() error {
		var s struct {
			Ready      bool
			Conditions any
			Rules      struct{ Notes []string }
		}
		err := getStatus(&s, func() (net.Conn, error) { return n.Dial("tcp", statusAddr) })
		switch {
		case err != nil:
			return err
		case !s.Ready:
			return fmt.Errorf("not ready: %v", s.Conditions)
		case want == "" && len(s.Rules.Notes) > 0,
			want != "" && !slices.ContainsFunc(s.Rules.Notes, func(n string) bool { return strings.Contains(n, want) }):
			return errors.New("notes: " + strings.Join(s.Rules.Notes, "; "))
		}
		return nil
	})
}
