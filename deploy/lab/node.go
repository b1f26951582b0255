package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"weft/lease/subnetenv"
)

// Node is a machine: a network namespace on the underlay, with its own /run and pods.
type Node struct {
	*NS
	Addr  netip.Addr // on the underlay
	Addr6 netip.Addr // on the underlay, if that has IPv6
	// Management is the node's address on the management network, RootManagement that of root on
	// the same link.
	Management, RootManagement netip.Addr
	// Dir is the directory that the node's processes have as /run. It outlives them, so a restarted
	// daemon finds its files.
	Dir  string
	Pods []*Pod

	lab    *Lab
	index  int // in Lab.Nodes
	subnet int // index of its underlay
}

// Pod is a network namespace connected to its node's bridge.
type Pod struct {
	*NS
	Node  *Node
	Addr  netip.Addr // set by Attach
	Addr6 netip.Addr // set by Attach if there is an IPv6 subnet
}

// AddNode adds a node with its pods. Nodes are named node1, node2, ..., their pods node1-pod1, ...
func (l *Lab) AddNode() (*Node, error) {
	l.mu.Lock()
	index := len(l.Nodes)
	l.mu.Unlock()
	name := fmt.Sprintf("%snode%d", l.options.NamePrefix, index+1)
	n := &Node{lab: l, index: index, subnet: index % len(l.options.Underlay),
		Dir: filepath.Join(labDir, name)}
	host := firstHost + index/len(l.options.Underlay)
	n.Addr = hostOf(l.options.Underlay[n.subnet], host)
	if len(l.options.Underlay6) > 0 {
		n.Addr6 = hostOf(l.options.Underlay6[n.subnet], host)
	}
	var err error
	if n.NS, err = NewNS(name); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.Nodes = append(l.Nodes, n)
	l.mu.Unlock()
	if err := n.build(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// build adds the node's pods and links.
func (n *Node) build() error {
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return err
	}
	if err := n.enableForwarding(); err != nil {
		return err
	}
	for i := range n.lab.options.PodsPerNode {
		ns, err := NewNS(fmt.Sprintf("%s-pod%d", n.Name, i+1))
		if err != nil {
			return err
		}
		n.Pods = append(n.Pods, &Pod{NS: ns, Node: n})
	}
	if err := n.joinManagement(); err != nil {
		return err
	}
	if n.lab.options.Direct {
		return nil
	}
	return n.joinUnderlay()
}

// enableForwarding makes the namespace a router. Reverse path filtering is off regardless of the
// host's default: it would drop the packets that the daemon is expected to refuse.
func (n *Node) enableForwarding() error {
	for _, s := range []struct{ name, value string }{
		{"ipv4/ip_forward", "1"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
	} {
		if err := n.Sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	err := n.Sysctl("ipv6/conf/all/forwarding", "1")
	if errors.Is(err, os.ErrNotExist) && len(n.lab.options.Underlay6) == 0 {
		return nil // a kernel without IPv6
	}
	return err
}

// Path returns the path, for this process, of a file below the node's /run:
// Path("flannel/subnet.env").
func (n *Node) Path(name string) string { return filepath.Join(n.Dir, name) }

// Attach does the work of the CNI plugins on a real node: it adds the bridge cni0 with the
// gateway's address and connects every pod to it, with the second, third, ... address of the subnet
// and env's MTU. Calling it again applies a changed env.
func (n *Node) Attach(env subnetenv.File) error {
	if err := n.attach(env); err != nil {
		return fmt.Errorf("%s: attach pods: %w", n.Name, err)
	}
	return nil
}

func (n *Node) attach(env subnetenv.File) error {
	if n.HasLink(podBridge) {
		if err := n.DeleteLink(podBridge); err != nil {
			return err
		}
		for _, p := range n.Pods {
			if err := p.DeleteLink(podPort); err != nil {
				return err
			}
		}
	}
	if err := addBridge(n.NS, podBridge, env.MTU); err != nil {
		return fmt.Errorf("add %s: %w", podBridge, err)
	}
	for i, p := range n.Pods {
		if err := n.connectPod(p, i, env.MTU); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	for _, gateway := range []netip.Prefix{env.Subnet, env.Subnet6} {
		if gateway.IsValid() {
			if err := n.addPodAddrs(gateway); err != nil {
				return err
			}
		}
	}
	return nil
}

// addPodAddrs adds the gateway's address to the bridge and an address and a default route to each
// pod, for one family.
func (n *Node) addPodAddrs(gateway netip.Prefix) error {
	if err := n.AddAddr(podBridge, gateway); err != nil {
		return err
	}
	for i, p := range n.Pods {
		address := hostOf(gateway, i+2)
		if gateway.Addr().Is4() {
			p.Addr = address
		} else {
			p.Addr6 = address
		}
		if err := p.AddAddr(podPort, netip.PrefixFrom(address, gateway.Bits())); err != nil {
			return err
		}
		if err := p.AddRoute(defaultRoute(gateway.Addr()), gateway.Addr(), ""); err != nil {
			return err
		}
	}
	return nil
}

// destroy releases the node's namespaces. It deletes the links first: the kernel removes them only
// some time after the namespace is gone.
func (n *Node) destroy() error {
	var errs []error
	for _, port := range []string{underlayPort, managementPort} {
		if n.HasLink(port) {
			errs = append(errs, n.DeleteLink(port))
		}
	}
	for _, p := range n.Pods {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, n.NS.Close(), os.RemoveAll(n.Dir))...)
}

// defaultRoute returns the default destination (0.0.0.0/0 or ::/0) of a's family.
func defaultRoute(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
