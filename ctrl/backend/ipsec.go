package backend

import (
	"fmt"

	"weft/ctrl"
	"weft/encap"
	"weft/lease"
)

const (
	// minPSK is the least number of characters of the preshared key, as in flannel.
	minPSK = 96
	// defaultESPProposal is flannel's: AES-GCM with 128 bits and, for new keys, the curve P-256.
	defaultESPProposal = "aes128gcm16-sha256-prfsha256-ecp256"
)

// ipsec carries packets in ESP tunnels between the nodes, without a device.
type ipsec struct {
	network lease.Network
	local   LocalNode
	ike     ctrl.IKE
	mtu     int
}

// ipsecConfig holds the backend's keys.
type ipsecConfig struct {
	PSK         string
	UDPEncap    bool
	ESPProposal string
}

// newIPsec checks the keys. No error holds the PSK.
func newIPsec(n lease.Network, l LocalNode) (Backend, error) {
	c := ipsecConfig{ESPProposal: defaultESPProposal}
	if err := decode(n, &c); err != nil {
		return nil, err
	}
	if len(c.PSK) < minPSK {
		return nil, fmt.Errorf("config key PSK has %d characters, want at least %d: "+
			"openssl rand -hex 48", len(c.PSK), minPSK)
	}
	if c.ESPProposal == "" {
		return nil, fmt.Errorf("config key ESPProposal is empty, want one such as %s",
			defaultESPProposal)
	}
	overhead := encap.OverheadESP4
	if n.IPv6Network.IsValid() {
		overhead = encap.OverheadESP6
	}
	if c.UDPEncap {
		overhead += encap.OverheadUDPEncap
	}
	mtu, err := deviceMTU(n, l, 0, overhead)
	return &ipsec{network: n, local: l, mtu: mtu, ike: ctrl.IKE{PSK: ctrl.Secret(c.PSK),
		ESPProposal: c.ESPProposal, UDPEncap: c.UDPEncap}}, err
}

// Plan returns an association per node and family, and its policies. Nodes at one address cannot be
// told apart, as the kernel finds the keys of a policy by address.
func (b *ipsec) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(b.network, "ipsec", self, all)
	s.IKE = b.ike
	own := map[bool]ctrl.Association{}
	for _, f := range families(b.network, self) {
		local := b.local.Iface.Addr
		if f.v6 {
			local = b.local.Iface.Addr6
		}
		own[f.v6] = ctrl.Association{Local: local, LocalNet: f.subnet.Masked()}
	}
	first := map[any]string{} // node by tunnel ends
	for _, p := range peers {
		a := own[p.v6]
		a.Remote, a.RemoteNet = p.public, p.subnet.Masked()
		if node, taken := first[ctrl.KeyOf(a)]; taken {
			unreachable(&s, p, fmt.Errorf("has the public address %v of node %s", p.public, node))
			continue
		}
		first[ctrl.KeyOf(a)] = p.lease.Node
		s.Associations = append(s.Associations, a)
		s.Policies = append(s.Policies, a.Policies()...)
	}
	return s
}

// Advertisement publishes no data of its own.
func (b *ipsec) Advertisement() Advertisement {
	return Advertisement{Type: "ipsec", Attrs: b.local.attrs("ipsec"), MTU: b.mtu}
}
