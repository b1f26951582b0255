package deploy_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// functionalNode is a container with a daemon.
type functionalNode struct {
	docker *docker
	name   string
}

// TestNetnsFunctional repeats flannel's functional tests (functional/etcd_test.go in flannel) with
// Weft's image: two containers get subnets, and addresses of the subnets on bridges reach each
// other. Unlike flannel's, the containers are not privileged.
func TestNetnsFunctional(t *testing.T) {
	d, etcd := startDockerNetwork(t)
	d.importImage(t)
	for _, backend := range []string{"udp", "vxlan", "host-gw", "ipip", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			switch backend {
			case "udp":
				lab.SkipWithoutTUN(t)
			case "ipip", "wireguard":
				skipWithoutDriver(t, backend)
			}
			put(t, etcd, "/"+backend, "10.10.0.0/16", backend)
			nodes := d.runFunctionalNodes(t, etcd, "/"+backend)
			checkFunctional(t, nodes, "/run/flannel/subnet.env", "br0")
		})
	}
	t.Run("two networks", func(t *testing.T) {
		put(t, etcd, "/vxlan/network", "10.11.0.0/16", "vxlan")
		put(t, etcd, "/hostgw/network", "10.12.0.0/16", "host-gw")
		nodes := d.runFunctionalNodes(t, etcd, "/vxlan/network")
		for _, n := range nodes {
			d.mustRun(t, "exec", "-d", n.name, "/opt/bin/flanneld", "--etcd-endpoints="+etcd.Endpoint(),
				"--etcd-prefix=/hostgw/network", "--subnet-file=/run/flannel/hostgw.env")
		}
		for _, test := range []struct{ file, bridge, device string }{
			{"/run/flannel/subnet.env", "br_vx", "flannel.1"},
			{"/run/flannel/hostgw.env", "br_hg", "eth0"},
		} {
			addresses := checkFunctional(t, nodes, test.file, test.bridge)
			for i, n := range nodes {
				if got := n.deviceTo(t, addresses[1-i]); got != test.device {
					t.Errorf("%s sends to %s by %s, want %s", n.name, addresses[1-i], got, test.device)
				}
			}
		}
	})
}

func put(t *testing.T, etcd *testetcd.Server, prefix, network, backend string) {
	t.Helper()
	config := fmt.Sprintf(`{"Network": %q, "Backend": {"Type": %q}}`, network, backend)
	if err := etcd.Put(prefix+"/config", config); err != nil {
		t.Fatal(err)
	}
}

// runFunctionalNodes runs two containers until the test ends.
func (d *docker) runFunctionalNodes(t *testing.T, etcd *testetcd.Server, prefix string) []functionalNode {
	t.Helper()
	var nodes []functionalNode
	for i, name := range []string{"flannel1", "flannel2"} {
		d.mustRun(t, "run", "-d", "--cap-add=NET_ADMIN", "--device=/dev/net/tun", "--stop-signal=KILL", "--name="+name,
			"--network=nodes", "--ip="+nodeAddress(i).String(), "weft:dev", "/opt/bin/flanneld", "--etcd-endpoints="+etcd.Endpoint(), "--etcd-prefix="+prefix, "-v", "10")
		t.Cleanup(func() { d.mustRun(t, "rm", "-f", name) })
		nodes = append(nodes, functionalNode{d, name})
	}
	return nodes
}

// checkFunctional gives each node an address of its subnet on a bridge and connects them three
// times in both directions, each from that address. It returns the addresses.
func checkFunctional(t *testing.T, nodes []functionalNode, file, bridge string) []netip.Addr {
	t.Helper()
	addresses := make([]netip.Addr, len(nodes))
	for i, n := range nodes {
		addresses[i] = n.addBridge(t, file, bridge)
	}
	for i, n := range nodes {
		peer := 1 - i
		target := netip.AddrPortFrom(addresses[peer], port)
		dialer := net.Dialer{Timeout: 500 * time.Millisecond,
			LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addresses[i], 0))}
		for range 3 {
			await(t, n.name+" to reach "+target.String(), func() error {
				seen, err := n.docker.acceptFrom(t, nodes[peer].name, target, func() error {
					return n.docker.inContainer(t, n.name, func() error {
						c, err := dialer.Dial("tcp", target.String())
						if err != nil {
							return err
						}
						return c.Close()
					})
				})
				if err == nil && seen != addresses[i] {
					err = fmt.Errorf("connection from %s, want %s", seen, addresses[i])
				}
				return err
			})
		}
	}
	return addresses
}

// addBridge waits for the file with the subnet, and adds a device with the address in it.
func (n functionalNode) addBridge(t *testing.T, file, name string) netip.Addr {
	t.Helper()
	var env subnetenv.File
	await(t, n.name+"'s "+file, func() (err error) {
		env, err = subnetenv.Read(fmt.Sprintf("/proc/%d/root%s", n.docker.pid(t, n.name), file))
		return err
	})
	address, err := netlink.ParseAddr(env.Subnet.String())
	if err != nil {
		t.Fatal(err)
	}
	err = n.docker.inContainer(t, n.name, func() error {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	return env.Subnet.Addr()
}

// deviceTo returns the device by which the node sends to an address.
func (n functionalNode) deviceTo(t *testing.T, to netip.Addr) (name string) {
	t.Helper()
	err := n.docker.inContainer(t, n.name, func() error {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil {
			return err
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err == nil {
			name = link.Attrs().Name
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}
