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
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
)

// port is the TCP port used between containers.
const port = 7777

// connectContainers connects from one container to an address of another and returns the source
// address seen there.
func connectContainers(
	t *testing.T, d *docker, from string, peer *docker, to string, at netip.Addr,
) (seen netip.Addr, err error) {
	t.Helper()
	target := netip.AddrPortFrom(at, port)
	return peer.acceptFrom(t, to, target, func() error {
		return d.inContainer(t, from, func() error { return dial(target) })
	})
}

// acceptFrom listens in a container while connect runs, and returns the source address of the
// connection.
func (d *docker) acceptFrom(
	t *testing.T, name string, at netip.AddrPort, connect func() error,
) (seen netip.Addr, err error) {
	t.Helper()
	var l net.Listener
	err = d.inContainer(t, name, func() (err error) {
		l, err = net.Listen("tcp", at.String())
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
	if err := connect(); err != nil {
		return seen, errors.Join(err, l.Close())
	}
	select {
	case from := <-accepted:
		return from.Addr(), nil
	case <-time.After(time.Second):
		return seen, errors.New("another program accepted the connection")
	}
}

// dial opens and closes a connection.
func dial(at netip.AddrPort) error {
	c, err := net.DialTimeout("tcp", at.String(), 500*time.Millisecond)
	if err != nil {
		return err
	}
	return c.Close()
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
	d, etcd := startDockerNetwork(t)
	d.buildImage(t)
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

// startDockerNetwork starts a dockerd with a network for containers that are nodes, and an etcd at
// its gateway.
func startDockerNetwork(t *testing.T) (*docker, *testetcd.Server) {
	t.Helper()
	n := lab.Start(t, lab.Options{Nodes: 1, PodsPerNode: -1}).Nodes[0]
	d := startDocker(t, n)
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
	return d, etcd
}

// nodeAddress returns the address of the i-th container on the docker network.
func nodeAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(11 + i)}) }

// runDaemon runs the compose file's service on the docker network, with docker volumes in place of
// host directories.
func (d *docker) runDaemon(t *testing.T, name string, at netip.Addr, etcd string) {
	t.Helper()
	s := composeService(t)
	run := append([]string{"run", "-d", "--name=" + name, "--network=nodes", "--ip=" + at.String(),
		"--sysctl=net.ipv4.ip_forward=1"}, s.runFlags()...) // as dockerd sets it on the host
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

// statusAddr is the address of --healthz-port=8081 that serves the full /status.
var statusAddr = netip.MustParseAddrPort("127.0.0.1:8081")

// getStatus reads a daemon's /status over a connection of dial.
func getStatus(status any, dial func() (net.Conn, error)) error {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dial() },
	}}
	resp, err := client.Get("http://" + statusAddr.String() + "/status")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(status)
}

// readLeasedSubnet reads the subnet from the /status of a ready daemon, over the loopback interface
// of its container, as the full status is only for clients on the node.
func (d *docker) readLeasedSubnet(t *testing.T, name string) (netip.Prefix, error) {
	var s struct {
		Ready      bool
		Conditions any
		Lease      struct{ Subnet netip.Prefix }
	}
	err := getStatus(&s, func() (conn net.Conn, err error) {
		err = d.inContainer(t, name, func() error {
			conn, err = net.DialTimeout("tcp", statusAddr.String(), time.Second)
			return err
		})
		return conn, err
	})
	if err != nil {
		return netip.Prefix{}, err
	}
	if !s.Ready {
		return netip.Prefix{}, fmt.Errorf("not ready: %v", s.Conditions)
	}
	return s.Lease.Subnet, nil
}
