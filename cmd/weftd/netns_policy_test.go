package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/deploy/lab"
)

// Ports of a pod in tests of network policies.
const (
	allowedPort = 7001
	deniedPort  = 7002
)

// policyRules returns commands that let pods connect to one port of a pod only, as agents for
// network policies do: kube-network-policies decides on new connections in a chain of its own table
// behind routing (with a queue in place of the verdict), others with iptables in front of FORWARD.
func policyRules(pod netip.Addr) map[string][]string {
	return map[string][]string{
		"nftables": {"nft", fmt.Sprintf(`
			table inet kube-network-policies {
				set podips-v4 { type ipv4_addr; elements = { %v } }
				chain verdict {
					tcp dport %d accept
					drop
				}
				chain postrouting {
					type filter hook postrouting priority srcnat - 5; policy accept;
					ct state established,related accept
					meta l4proto != { tcp, udp, sctp } accept
					ip daddr @podips-v4 jump verdict
				}
			}`, pod, allowedPort)},
		"iptables": {"sh", "-c", fmt.Sprintf("iptables -w -N POLICY && "+
			"iptables -w -A POLICY -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT && "+
			"iptables -w -A POLICY -p tcp --dport %d -j ACCEPT && iptables -w -A POLICY -j DROP && "+
			"iptables -w -I FORWARD -p tcp -d %v -j POLICY", allowedPort, pod)},
	}
}

// TestNetnsNetworkPolicy enforces a policy for incoming connections on the node of the pod, and one
// for outgoing connections on the other node, over each way of packets.
func TestNetnsNetworkPolicy(t *testing.T) {
	for _, f := range filters() {
		f.need(t)
	}
	c := newCluster(t, lab.Options{}, clusterNetwork)
	for _, way := range []struct {
		name, backend string
		flags         []string
	}{
		{"udp", "udp", nil},
		{"udp fast path", "udp", []string{"--fast-path=auto"}},
		{"vxlan", "vxlan", nil},
		{"host-gw", "host-gw", nil},
	} {
		t.Run(way.name, func(t *testing.T) {
			c := c.in(t)
			c.put(clusterPrefix+"/config", filters()[0].network(`{"Type":"`+way.backend+`"}`))
			ds := c.restart(way.flags...)
			defer func() {
				for _, d := range ds {
					d.stop()
				}
			}()
			for _, d := range ds {
				if len(way.flags) > 0 {
					d.awaitFastPath()
				}
			}
			for _, n := range c.Nodes {
				for name := range policyRules(netip.Addr{}) {
					c.checkPolicy(n, name, way.name)
				}
			}
		})
	}
}

// checkPolicy sets rules on one node for the pod of the second and checks which connections from
// the first node's pod succeed. One that was open before goes on.
func (c *cluster) checkPolicy(on *lab.Node, rules, way string) {
	c.t.Helper()
	desc := fmt.Sprintf("%s, %s on %s", way, rules, on.Name)
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	denied := c.listen(to, deniedPort)
	defer denied.Close()
	defer c.listen(to, allowedPort).Close()
	open, err := dial(from, to, deniedPort)
	if err != nil {
		c.t.Fatalf("%s: connection without a policy: %v", desc, err)
	}
	defer open.Close()
	inNode(c.t, on, policyRules(to.Addr)[rules]...)
	defer func() {
		if rules == "nftables" {
			inNode(c.t, on, "nft", "delete table inet kube-network-policies")
			return
		}
		inNode(c.t, on, "sh", "-c", fmt.Sprintf(
			"iptables -w -D FORWARD -p tcp -d %v -j POLICY && iptables -w -F POLICY && iptables -w -X POLICY", to.Addr))
	}()
	for range 2 { // the fast path knows the node by the second one
		conn, err := dial(from, to, allowedPort)
		if err != nil {
			c.t.Fatalf("%s: allowed connection: %v", desc, err)
		}
		conn.Close()
	}
	conn, err := dial(from, to, deniedPort)
	if err == nil {
		conn.Close()
	}
	if e := net.Error(nil); !errors.As(err, &e) || !e.Timeout() {
		c.t.Errorf("%s: denied connection: %v, want a timeout", desc, err)
	}
	accepted, err := denied.Accept()
	if err != nil {
		c.t.Fatal(err)
	}
	defer accepted.Close()
	if _, err := accepted.Write([]byte("x")); err != nil {
		c.t.Fatal(err)
	}
	if err := open.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := open.Read(make([]byte, 1)); err != nil {
		c.t.Errorf("%s: connection from before the policy: %v", desc, err)
	}
}

func (c *cluster) listen(p *lab.Pod, port uint16) net.Listener {
	c.t.Helper()
	l, err := p.Listen(p.Addr, port)
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

// dial connects to a port of a pod. A connection that is allowed takes far less than the limit,
// which is below the time after which TCP sends again.
func dial(from, to *lab.Pod, port uint16) (conn net.Conn, err error) {
	err = from.Do(func() error {
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(to.Addr, port).String(), 900*time.Millisecond)
		return err
	})
	return conn, err
}
