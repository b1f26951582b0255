package netfilter

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/deploy/lab"
)

// TestNetnsPodsCannotReachTunnelPort sends datagrams to the port of the tunnel, and to others, from
// a pod and from its node.
func TestNetnsPodsCannotReachTunnelPort(t *testing.T) {
	const port = 8285
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			requireProgram(t, "iptables"+fw.variant)
			o, m := newTestOverlay(t), fw.manager()
			near, far := o.Nodes[0], o.Nodes[1]
			pod := near.Pods[0].NS
			d := Desired{Nets: o.nets[0], Masquerade: true, Forward: true, NFTables: fw.nft}
			for _, a := range []netip.Addr{near.Addr, near.Addr6} {
				d.TunnelPorts = append(d.TunnelPorts, netip.AddrPortFrom(a, port))
			}
			// As on a host with docker: pods' packets are accepted before own rules of the filter
			// table.
			runIn(t, near.NS, "iptables"+fw.variant, "-I", "FORWARD", "-i", "cni0", "-j", "ACCEPT")
			runIn(t, near.NS, "iptables"+fw.variant, "-t", "mangle", "-A", "FORWARD", "-i", "cni0", "-j", "ACCEPT")
			for _, on := range []bool{false, true, false} {
				if d.TunnelPorts = d.TunnelPorts[:2]; !on {
					d.TunnelPorts = d.TunnelPorts[:0]
				}
				set(t, near.NS, m, d)
				for _, to := range []struct {
					name     string
					from, at *lab.NS
					addr     netip.AddrPort
					dropped  bool
				}{
					{"other node", pod, far.NS, netip.AddrPortFrom(far.Addr, port), on},
					{"other node, IPv6", pod, far.NS, netip.AddrPortFrom(far.Addr6, port), on},
					{"outside", pod, o.Root.NS, netip.AddrPortFrom(o.Root.Addr, port), on},
					{"own node", pod, near.NS, netip.AddrPortFrom(near.Addr, port), on},
					{"own node's pod address", pod, near.NS,
						netip.AddrPortFrom(o.nets[0][0].Subnet.Addr(), port), on},
					{"pod of another node", pod, far.Pods[0].NS, netip.AddrPortFrom(far.Pods[0].Addr, port), false},
					{"another port", pod, far.NS, netip.AddrPortFrom(far.Addr, port+1), false},
					{"from the node", near.NS, far.NS, netip.AddrPortFrom(far.Addr, port), false},
				} {
					arrived, err := arrives(to.from, to.at, to.addr)
					if err != nil || arrived == to.dropped {
						t.Errorf("%s, rules %t: arrived %t, %v", to.name, on, arrived, err)
					}
				}
			}
		})
	}
}

// arrives sends a datagram, followed by one to another port that no rule concerns, and reports
// whether the first one arrived.
func arrives(from, at *lab.NS, to netip.AddrPort) (bool, error) {
	c, err := at.ListenUDP(to.Addr(), to.Port())
	if err != nil {
		return false, err
	}
	defer c.Close()
	err = from.Do(func() error {
		s, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.Write([]byte("x"))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("send: %w", err)
	}
	if _, err := seenSource(from, at, to.Addr()); err != nil {
		return false, fmt.Errorf("datagram to another port: %w", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		return false, err
	}
	_, _, err = c.ReadFromUDPAddrPort(make([]byte, 8))
	return err == nil, nil
}
