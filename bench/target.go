package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/bench/report"
	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// Target is something that carries packets between the pods of nodes.
type Target struct {
	report.Target
	// start sets the overlay up in its lab.
	start func(ctx context.Context, o *overlay) error
}

func newTarget(name, description string, start func(context.Context, *overlay) error) Target {
	return Target{report.Target{Name: name, Description: description}, start}
}

// overlay is a running target.
type overlay struct {
	target     Target
	lab        *lab.Lab
	daemons    []*lab.Process
	etcd       *testetcd.Server
	device     string // TUN device of the daemon on every node; empty without one
	hasMetrics bool   // the daemons serve weftd's metrics
}

const (
	benchNetwork  = "10.5.0.0/16"
	benchHealth   = 8286
	benchEtcd     = 2379
	benchPrefix   = "/coreos.com/network"
	startTimeout  = 60 * time.Second // until a target's daemons forward packets
	scrapeTimeout = 5 * time.Second
)

// podSubnet is the subnet of the i-th node if no store assigns subnets.
func podSubnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i + 1), 0}), 24)
}

// KernelTargets returns the targets without a daemon.
func KernelTargets() []Target {
	return []Target{
		kernelTarget("none", "no tunnel: routes to the other node, as host-gw",
			func(n *lab.Node, _ netip.Prefix,
				peers []lab.Peer) (int, error) {
				return n.RoutePeers(peers)
			}),
		kernelTarget("vxlan", "VXLAN of the kernel", (*lab.Node).TunnelVXLAN),
		kernelTarget("ipip", "IP in IP of the kernel", (*lab.Node).TunnelIPIP),
		kernelTarget("fou", "foo over UDP of the kernel: the bytes of flannel's udp backend",
			(*lab.Node).TunnelFOU),
	}
}

// connectFunc connects a node to the subnets of its peers and returns the MTU for pods.
type connectFunc func(n *lab.Node, own netip.Prefix, peers []lab.Peer) (mtu int, err error)

func kernelTarget(name, description string, connect connectFunc) Target {
	return newTarget(name, description, func(_ context.Context,
		o *overlay) error {
		return o.connect(connect)
	})
}

// connect connects every node to every other one and attaches the pods.
func (o *overlay) connect(connect connectFunc) error {
	for i, n := range o.lab.Nodes {
		var peers []lab.Peer
		for j, other := range o.lab.Nodes {
			if i != j {
				peers = append(peers, lab.Peer{Node: other, Subnet: podSubnet(j)})
			}
		}
		mtu, err := connect(n, podSubnet(i), peers)
		if err != nil {
			return err
		}
		gateway := netip.PrefixFrom(podSubnet(i).Addr().Next(), podSubnet(i).Bits())
		if err := n.Attach(subnetenv.File{Subnet: gateway, MTU: mtu}); err != nil {
			return err
		}
	}
	return nil
}

// Weftd returns weftd with some flags as a target. Its leases come from a file.
func Weftd(name, description, path string, flags ...string) Target {
	return newTarget(name, description, func(ctx context.Context, o *overlay) error {
		o.device = "flannel0"
		if err := o.writeLeases(); err != nil {
			return err
		}
		for _, n := range o.lab.Nodes {
			argv := append([]string{path, "--lease-file=/run/weft.json", "--node-name=" + n.Name,
				"--iface=eth0", "--iptables-forward-rules=false", "--healthz-port=" +
					strconv.Itoa(benchHealth)},
				flags...)
			if err := o.startDaemon(n, argv); err != nil {
				return err
			}
		}
		if err := o.attachAll(ctx); err != nil {
			return err
		}
		o.detectMetrics()
		return nil
	})
}

// FastPath returns weftd with its fast path as a target. Its leases are in etcd, where the nodes
// announce the fast path; a lease file does not change.
func FastPath(name, path string) Target {
	const description = "weftd with default flags: the kernel carries packets that need no decision"
	argv := []string{path, "--fast-path=auto", "--iptables-forward-rules=false"}
	return newTarget(name, description, func(ctx context.Context, o *overlay) error {
		return o.startWithEtcd(ctx, "udp", argv)
	})
}

// WireGuard returns the kernel's WireGuard, configured by weftd, as a target.
func WireGuard(path string) Target {
	const description = "WireGuard of the kernel (encrypted), configured by weftd"
	return newTarget("wireguard", description, func(ctx context.Context, o *overlay) error {
		if !o.lab.Nodes[0].HasDriver("wireguard") {
			return errors.New("the kernel has no driver for wireguard")
		}
		return o.startWireGuard(ctx, path)
	})
}

// UserspaceWireGuard returns WireGuard in weftd's process as a target. weftd runs it only on a
// kernel without WireGuard.
func UserspaceWireGuard(path string) Target {
	const description = "WireGuard in weftd's process (encrypted)"
	return newTarget("wireguard-go", description, func(ctx context.Context, o *overlay) error {
		if o.lab.Nodes[0].HasDriver("wireguard") {
			return errors.New("the kernel has a driver for wireguard, which weftd uses")
		}
		return o.startWireGuard(ctx, path)
	})
}

func (o *overlay) startWireGuard(ctx context.Context, path string) error {
	return o.startWithEtcd(ctx, "wireguard", []string{path, "--iptables-forward-rules=false"})
}

// Other returns a daemon with flannel's command line as a target. It uses the udp backend and keeps
// its leases in etcd.
func Other(name string, argv ...string) Target {
	return newTarget(name, "another program: "+strings.Join(argv, " "),
		func(ctx context.Context, o *overlay) error {
			return o.startWithEtcd(ctx, "udp", argv)
		})
}

// startWithEtcd starts an etcd for this overlay and, on each node, a daemon that gets its lease
// from it.
func (o *overlay) startWithEtcd(ctx context.Context, backend string, argv []string) error {
	root := o.lab.Nodes[0].RootManagement
	if !root.IsValid() {
		root = o.lab.Root.Addr
	}
	var err error
	o.etcd, err = testetcd.Start(testetcd.Config{
		Dir: o.lab.Root.Path("etcd"), Listen: netip.AddrPortFrom(root, benchEtcd)})
	if err != nil {
		return err
	}
	network := `{"Network":"` + benchNetwork + `","Backend":{"Type":"` + backend + `"}}`
	if err := o.etcd.Put(benchPrefix+"/config", network); err != nil {
		return err
	}
	for _, n := range o.lab.Nodes {
		if n.RootManagement.IsValid() && n.RootManagement != root {
			if err := n.AddRoute(netip.PrefixFrom(root, 32), n.RootManagement, ""); err != nil {
				return err
			}
		}
		all := append(slices.Clone(argv),
			"--etcd-endpoints="+o.etcd.Endpoint(), "--etcd-prefix="+benchPrefix, "--iface=eth0")
		if err := o.startDaemon(n, all); err != nil {
			return err
		}
	}
	return o.attachAll(ctx)
}

// writeLeases writes the same lease file to every node.
func (o *overlay) writeLeases() error {
	type node struct {
		Name     string       `json:"name"`
		Subnet   netip.Prefix `json:"subnet"`
		PublicIP netip.Addr   `json:"publicIP"`
	}
	var file struct {
		Network struct {
			Network string
			Backend struct{ Type string }
		} `json:"network"`
		Nodes []node `json:"nodes"`
	}
	file.Network.Network, file.Network.Backend.Type = benchNetwork, "udp"
	for i, n := range o.lab.Nodes {
		file.Nodes = append(file.Nodes, node{n.Name, podSubnet(i), n.Addr})
	}
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	for _, n := range o.lab.Nodes {
		if err := os.WriteFile(n.Path("weft.json"), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (o *overlay) startDaemon(n *lab.Node, argv []string) error {
	p, err := n.Start(argv)
	if err == nil {
		o.daemons = append(o.daemons, p)
	}
	return err
}

// attachAll waits for the subnet.env of all nodes and attaches the pods.
func (o *overlay) attachAll(ctx context.Context) error {
	for i, n := range o.lab.Nodes {
		var env subnetenv.File
		err := lab.Await(ctx, startTimeout, n.Name+": subnet.env", func() (err error) {
			if !o.daemons[i].Running() {
				return nil // the MTU stays 0
			}
			env, err = subnetenv.Read(n.Path("flannel/subnet.env"))
			return err
		})
		if err == nil && env.MTU == 0 {
			err = exitError(o.daemons[i])
		}
		if err == nil {
			err = n.Attach(env)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// exitError returns an error with the end of a daemon's log.
func exitError(p *lab.Process) error {
	return fmt.Errorf("%s: the daemon exited: %s", p.Node, strings.Join(p.Tail(5), "\n"))
}

// checkDaemons returns an error if a daemon has exited.
func (o *overlay) checkDaemons() error {
	for _, p := range o.daemons {
		if !p.Running() {
			return exitError(p)
		}
	}
	return nil
}

// detectMetrics checks whether the daemons serve metrics, as old versions do not. Daemons serve
// them before they are ready.
func (o *overlay) detectMetrics() {
	o.hasMetrics = true
	_, err := o.scrape(o.lab.Nodes[0])
	o.hasMetrics = err == nil
}

// scrape reads the metrics of weftd on a node. It returns nil if the daemon serves none.
func (o *overlay) scrape(n *lab.Node) (Metrics, error) {
	if !o.hasMetrics {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	at := n.Management
	if !at.IsValid() {
		at = n.Addr
	}
	return Scrape(ctx, netip.AddrPortFrom(at, benchHealth))
}

// start creates a lab for the target, starts it and waits until the first pod reaches all others.
func start(ctx context.Context, t Target, options lab.Options) (*overlay, error) {
	o := &overlay{target: t}
	var err error
	if o.lab, err = lab.New(ctx, options); err == nil {
		err = t.start(ctx, o)
	}
	if err == nil {
		err = o.awaitPods(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", t.Name, err), o.close())
	}
	return o, nil
}

// awaitPods waits until the first pod reaches those of all other nodes.
func (o *overlay) awaitPods(ctx context.Context) error {
	from := o.lab.Nodes[0].Pods[0]
	for _, n := range o.lab.Nodes[1:] {
		err := lab.Await(ctx, startTimeout, "ping from "+from.Name+" to "+n.Pods[0].Name,
			func() error {
				r, err := from.Ping(ctx, n.Pods[0].Addr, lab.Ping{Timeout: 100 * time.Millisecond})
				if err == nil && r.Received == 0 {
					err = errors.New("no answer")
				}
				return err
			})
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *overlay) close() error {
	var err error
	if o.lab != nil {
		err = o.lab.Close()
	}
	if o.etcd != nil {
		o.etcd.Close()
	}
	return err
}
