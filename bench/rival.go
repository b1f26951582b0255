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

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// Rival is something that carries packets between the pods of nodes.
type Rival struct {
	Name string `json:"name"`
	What string `json:"what"`
	// start makes it work in a lab; what it needs beyond that goes with the lab.
	start func(ctx context.Context, o *overlay) error
}

// overlay is a rival at work.
type overlay struct {
	rival   Rival
	lab     *lab.Lab
	daemons []*lab.Process
	etcd    *testetcd.Server
	device  string // of the daemon, in every node; empty if there is none to look at
	metered bool   // the daemons have our page of metrics
}

const (
	benchNetwork = "10.5.0.0/16"
	benchHealth  = 8286
	benchEtcd    = 2379
	benchPrefix  = "/coreos.com/network"
	// startTimeout bounds the start of a rival's daemons.
	startTimeout = 60 * time.Second
	// scrapeTimeout bounds the reading of a daemon's metrics.
	scrapeTimeout = 5 * time.Second
)

// podSubnet is the subnet of the i-th node where no store deals them out.
func podSubnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i + 1), 0}), 24)
}

// KernelRivals are those that need no daemon.
func KernelRivals() []Rival {
	return []Rival{
		{"none", "no tunnel: routes to the other node, as host-gw", kernelRival(func(n *lab.Node, _ netip.Prefix, peers []lab.Peer) (int, error) {
			return n.RoutePeers(peers)
		})},
		{"vxlan", "the kernel's VXLAN", kernelRival((*lab.Node).TunnelVXLAN)},
		{"ipip", "the kernel's IP in IP", kernelRival((*lab.Node).TunnelIPIP)},
	}
}

// joiner gives a node a way to the subnets of its peers and returns the MTU for pods.
type joiner func(n *lab.Node, own netip.Prefix, peers []lab.Peer) (mtu int, err error)

func kernelRival(join joiner) func(context.Context, *overlay) error {
	return func(_ context.Context, o *overlay) error { return o.join(join) }
}

// join joins every node to every other one and attaches the pods.
func (o *overlay) join(join joiner) error {
	for i, n := range o.lab.Nodes {
		var peers []lab.Peer
		for j, other := range o.lab.Nodes {
			if i != j {
				peers = append(peers, lab.Peer{Node: other, Subnet: podSubnet(j)})
			}
		}
		mtu, err := join(n, podSubnet(i), peers)
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

// Weftd is our daemon with some flags; its leases come from a file.
func Weftd(name, what, path string, flags ...string) Rival {
	return Rival{name, what, func(ctx context.Context, o *overlay) error {
		o.device = "flannel0"
		if err := o.writeLeases(); err != nil {
			return err
		}
		for _, n := range o.lab.Nodes {
			argv := append([]string{path, "--lease-file=/run/weft.json", "--node-name=" + n.Name, "--iface=eth0",
				"--iptables-forward-rules=false", "--healthz-port=" + strconv.Itoa(benchHealth)}, flags...)
			if err := o.startDaemon(n, argv); err != nil {
				return err
			}
		}
		if err := o.attachAll(ctx); err != nil {
			return err
		}
		o.meter()
		return nil
	}}
}

// WireGuard is the kernel's WireGuard, set up by our daemon.
func WireGuard(path string) Rival {
	return Rival{"wireguard", "the kernel's WireGuard (encrypted), set up by weftd", func(ctx context.Context, o *overlay) error {
		if !o.lab.Nodes[0].HasDriver("wireguard") {
			return errors.New("the kernel has no driver for wireguard")
		}
		return o.startOnEtcd(ctx, `{"Network":"`+benchNetwork+`","Backend":{"Type":"wireguard"}}`, []string{path, "--iptables-forward-rules=false"})
	}}
}

// Other is any daemon that takes flannel's command line and keeps its leases in etcd.
func Other(name string, argv ...string) Rival {
	return Rival{name, "another program: " + strings.Join(argv, " "), func(ctx context.Context, o *overlay) error {
		return o.startOnEtcd(ctx, `{"Network":"`+benchNetwork+`","Backend":{"Type":"udp"}}`, argv)
	}}
}

// startOnEtcd starts a daemon on each node that gets its lease from an etcd of this overlay.
func (o *overlay) startOnEtcd(ctx context.Context, network string, argv []string) error {
	root := o.lab.Nodes[0].RootManagement
	if !root.IsValid() {
		root = o.lab.Root.Addr
	}
	var err error
	o.etcd, err = testetcd.Start(testetcd.Config{Dir: o.lab.Root.Path("etcd"), Listen: netip.AddrPortFrom(root, benchEtcd)})
	if err != nil {
		return err
	}
	if err := o.etcd.Put(benchPrefix+"/config", network); err != nil {
		return err
	}
	for _, n := range o.lab.Nodes {
		if n.RootManagement.IsValid() && n.RootManagement != root {
			if err := n.AddRoute(netip.PrefixFrom(root, 32), n.RootManagement, ""); err != nil {
				return err
			}
		}
		all := append(slices.Clone(argv), "--etcd-endpoints="+o.etcd.Endpoint(), "--etcd-prefix="+benchPrefix, "--iface=eth0")
		if err := o.startDaemon(n, all); err != nil {
			return err
		}
	}
	return o.attachAll(ctx)
}

// writeLeases writes the file that all our daemons share.
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

// attachAll waits for every node's subnet.env and attaches its pods.
func (o *overlay) attachAll(ctx context.Context) error {
	for i, n := range o.lab.Nodes {
		var env subnetenv.File
		err := lab.Await(ctx, startTimeout, n.Name+": subnet.env", func() (err error) {
			if !o.daemons[i].Running() {
				return nil // told apart below
			}
			env, err = subnetenv.Read(n.Path("flannel/subnet.env"))
			return err
		})
		if err == nil && env.MTU == 0 {
			err = ended(o.daemons[i])
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

// ended says that a daemon has ended, and its last words.
func ended(p *lab.Process) error {
	return fmt.Errorf("%s: the daemon has ended: %s", p.Node, strings.Join(p.Tail(5), "\n"))
}

// alive fails when a daemon has ended.
func (o *overlay) alive() error {
	for _, p := range o.daemons {
		if !p.Running() {
			return ended(p)
		}
	}
	return nil
}

// meter looks whether the daemons have a page of metrics. They serve it before they say that they are up; an older daemon
// without it is measured all the same.
func (o *overlay) meter() {
	o.metered = true
	_, err := o.metrics(o.lab.Nodes[0])
	o.metered = err == nil
}

// metrics are our daemon's numbers on a node, none if it has no page of them.
func (o *overlay) metrics(n *lab.Node) (Metrics, error) {
	if !o.metered {
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

// Capabilities says which abilities of the kernel our daemon uses, and which not.
func (m Metrics) Capabilities() (used, unused []string) {
	for sample, v := range m {
		name, ok := strings.CutPrefix(sample, `weft_engine_feature{feature="`)
		if !ok {
			continue
		}
		name = strings.TrimSuffix(name, `"}`)
		if v == 1 {
			used = append(used, name)
		} else {
			unused = append(unused, name)
		}
	}
	slices.Sort(used)
	slices.Sort(unused)
	return used, unused
}

// begin builds a lab for the rival and waits until the first two pods reach each other.
func begin(ctx context.Context, r Rival, options lab.Options) (*overlay, error) {
	o := &overlay{rival: r}
	var err error
	if o.lab, err = lab.New(ctx, options); err == nil {
		err = r.start(ctx, o)
	}
	if err == nil {
		err = o.awaitPods(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", r.Name, err), o.close())
	}
	return o, nil
}

// awaitPods waits until the first pod reaches those of all other nodes.
func (o *overlay) awaitPods(ctx context.Context) error {
	from := o.lab.Nodes[0].Pods[0]
	for _, n := range o.lab.Nodes[1:] {
		err := lab.Await(ctx, startTimeout, from.Name+" reaches "+n.Pods[0].Name, func() error {
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
