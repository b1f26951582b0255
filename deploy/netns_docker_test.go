package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// port is the TCP port used between containers.
const port = 7777

// connectContainers connects from one container to an address of another and returns the source
// address seen there.
func connectContainers(
	t *testing.T, d *docker, from string, peer *docker, to string, at netip.Addr,
) (seen netip.Addr, err error) {
	t.Helper()
	var l net.Listener
	err = peer.inContainer(t, to, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err != nil {
		return seen, err
	}
	defer l.Close()
	accepted := make(chan netip.AddrPort, 1)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c.RemoteAddr().(*net.TCPAddr).AddrPort()
			_ = c.Close() // nothing was sent
		}
	}()
	err = d.inContainer(t, from, func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(at, port).String(), 500*time.Millisecond)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return seen, errors.Join(err, l.Close())
	}
	return (<-accepted).Addr(), nil
}

// service is the service in the compose file.
type service struct {
	Image, Restart string
	Command        []string
	ReadOnly       bool     `json:"read_only"`
	NetworkMode    string   `json:"network_mode"`
	CapDrop        []string `json:"cap_drop"`
	CapAdd         []string `json:"cap_add"`
	SecurityOpt    []string `json:"security_opt"`
	Devices        []string
	Volumes        []string
}

// runFlags returns the flags of docker run for the service, without its network and volumes.
func (s service) runFlags() []string {
	flags := []string{"--restart=" + s.Restart, fmt.Sprintf("--read-only=%v", s.ReadOnly)}
	for flag, values := range map[string][]string{
		"cap-drop": s.CapDrop, "cap-add": s.CapAdd, "security-opt": s.SecurityOpt, "device": s.Devices,
	} {
		for _, v := range values {
			flags = append(flags, "--"+flag+"="+v)
		}
	}
	return flags
}

// composeService reads the compose file; unknown fields are errors.
func composeService(t *testing.T) service {
	t.Helper()
	b, err := os.ReadFile("docker/compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]service }
	if err := yaml.UnmarshalStrict(b, &file); err != nil {
		t.Fatal(err)
	}
	return file.Services["weft"]
}

// TestNetnsDockerCompose runs two copies of the compose file's service as nodes on a docker
// network, restarts one and pauses it for a minute.
func TestNetnsDockerCompose(t *testing.T) {
	n := lab.Start(t, lab.Options{Nodes: 1, PodsPerNode: -1}).Nodes[0]
	d := startDocker(t, n)
	d.buildImage(t)
	d.mustRun(t, "network", "create", "--subnet=172.30.0.0/24", "--gateway=172.30.0.1", "nodes")
	var etcd *testetcd.Server
	err := n.Do(func() (err error) {
		etcd, err = testetcd.Start(testetcd.Config{Dir: filepath.Join(t.TempDir(), "etcd"),
			Listen: netip.MustParseAddrPort("172.30.0.1:2379")})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	if err := etcd.Put("/coreos.com/network/config", `{"Network": "10.5.0.0/16"}`); err != nil {
		t.Fatal(err)
	}
	names := []string{"node-a", "node-b"}
	for i, name := range names {
		d.runDaemon(t, name, nodeAddress(i), etcd.Endpoint())
	}
	a, b := d.subnet(t, names, 0), d.subnet(t, names, 1)
	for _, name := range names {
		// 2 means filter mode (proc_pid_status(5)): the daemon works under docker's own filter.
		if got := processStatus(t, d.pid(t, name), "Seccomp"); got != "2" {
			t.Errorf("%s: seccomp mode %s", name, got)
		}
	}
	checkTraffic := func(when string) {
		t.Helper()
		if again := d.subnet(t, names, 1); again != b {
			t.Errorf("%s: node-b has %s, want %s as before", when, again, b)
		}
		await(t, "traffic "+when, func() error {
			_, err := connectContainers(t, d, "node-a", d, "node-b", b)
			_, back := connectContainers(t, d, "node-b", d, "node-a", a)
			return errors.Join(err, back)
		})
	}
	checkTraffic("at the start")
	d.mustRun(t, "stop", "node-b")
	d.mustRun(t, "start", "node-b")
	checkTraffic("after a restart")
	pause := time.Minute
	if testing.Short() {
		pause = 5 * time.Second
	}
	d.mustRun(t, "pause", "node-b")
	time.Sleep(pause) // the length of the outage is under test
	d.mustRun(t, "unpause", "node-b")
	checkTraffic("after a pause")
}

// nodeAddress returns the address of the i-th container on the docker network.
func nodeAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(11 + i)}) }

// runDaemon runs the compose file's service on the docker network, with docker volumes in place of
// host directories.
func (d *docker) runDaemon(t *testing.T, name string, at netip.Addr, etcd string) {
	t.Helper()
	s := composeService(t)
	run := append([]string{"run", "-d", "--name=" + name, "--network=nodes", "--ip=" + at.String()}, s.runFlags()...)
	for _, v := range s.Volumes {
		_, inside, _ := strings.Cut(v, ":")
		run = append(run, "--volume="+name+":"+inside)
	}
	run = append(run, s.Image)
	for _, arg := range s.Command {
		run = append(run, strings.ReplaceAll(arg, "${ETCD:-http://127.0.0.1:2379}", etcd))
	}
	d.mustRun(t, run...)
}

// subnet waits until the i-th container is ready and returns the first address of its subnet, the
// address of its device.
func (d *docker) subnet(t *testing.T, names []string, i int) netip.Addr {
	t.Helper()
	var subnet netip.Prefix
	await(t, names[i]+" to be ready", func() (err error) {
		if subnet, err = d.readLeasedSubnet(t, names[i]); err != nil {
			logs, _ := d.run("logs", "--tail=3", names[i])
			err = fmt.Errorf("%w\n%s", err, logs)
		}
		return err
	})
	return subnet.Addr()
}

// readLeasedSubnet reads the subnet from the /status of a ready daemon, over the loopback interface
// of its container, as the full status is only for clients on the node.
func (d *docker) readLeasedSubnet(t *testing.T, name string) (netip.Prefix, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = d.inContainer(t, name, func() error {
				conn, err = net.DialTimeout(network, address, time.Second)
				return err
			})
			return conn, err
		},
	}}
	resp, err := client.Get("http://127.0.0.1:8081/status")
	if err != nil {
		return netip.Prefix{}, err
	}
	defer resp.Body.Close()
	var s struct {
		Ready      bool
		Conditions any
		Lease      struct{ Subnet netip.Prefix }
	}
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return netip.Prefix{}, err
	}
	if !s.Ready {
		return netip.Prefix{}, fmt.Errorf("not ready: %v", s.Conditions)
	}
	return s.Lease.Subnet, nil
}

// TestNetnsDockerOpts starts dockerd on two nodes with the output of weft docker-opts. Containers
// must reach each other under their own addresses.
func TestNetnsDockerOpts(t *testing.T) {
	lab.SkipWithoutTUN(t)
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
	dockers, addresses := make([]*docker, 2), make([]netip.Addr, 2)
	for i, n := range l.Nodes {
		if _, err := n.Start([]string{filepath.Join(buildImageDir(t), "opt/bin/flanneld"),
			"--etcd-endpoints=" + etcd.Endpoint(), "--ip-masq"}); err != nil {
			t.Fatal(err)
		}
		env := n.Path("flannel/subnet.env")
		await(t, "subnet.env", func() error {
			_, err := subnetenv.Read(env)
			return err
		})
		options := n.Path("docker_opts.env")
		if out, err := exec.Command(tool, "docker-opts", "-f", env, "-d", options).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		words := strings.Fields(strings.Trim(readSettings(t, options)["DOCKER_OPTS"][0], `" `))
		d := startDocker(t, n, words...)
		d.buildImage(t)
		d.mustRun(t, "run", "-d", "--name=pod", "--entrypoint=/opt/bin/install-conf", "weft:dev",
			"--ready=http://127.0.0.1:1/", "a", "b")
		address, err := netip.ParseAddr(d.mustRun(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "pod"))
		if err != nil {
			t.Fatal(err)
		}
		dockers[i], addresses[i] = d, address
	}
	for i, d := range dockers {
		peer := 1 - i
		await(t, "containers to reach each other", func() error {
			seen, err := connectContainers(t, d, "pod", dockers[peer], "pod", addresses[peer])
			if err == nil && seen != addresses[i] {
				err = fmt.Errorf("container %s connects from %s", addresses[i], seen)
			}
			return err
		})
	}
}
