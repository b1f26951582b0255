package ctrl

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// AddrList joins the valid addresses with spaces.
func AddrList(as ...netip.Addr) string {
	var s []string
	for _, a := range as {
		if a.IsValid() {
			s = append(s, a.String())
		}
	}
	return strings.Join(s, " ")
}

// MAC is an Ethernet address; the zero value means none.
type MAC [6]byte

// ParseMAC parses an address in the form of MAC.String.
func ParseMAC(s string) (MAC, error) {
	a, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(a) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not an Ethernet address", s)
	}
	return MAC(a), nil
}

// String formats the address like iproute2: 0a:1b:2c:3d:4e:5f.
func (m MAC) String() string {
	b := make([]byte, 0, 17)
	for i, x := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, []byte{x})
	}
	return string(b)
}

// String formats the device and its non-zero settings in the words of `ip link`.
func (l Link) String() string {
	s := "device " + l.Name
	if l.Kind != "" {
		s += " type " + string(l.Kind)
	}
	if l.FormerName != "" {
		s += " renamed from " + l.FormerName
	}
	if l.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.TxQueueLen != 0 {
		s += fmt.Sprintf(" txqueuelen %d", l.TxQueueLen)
	}
	if l.MAC != (MAC{}) {
		s += " address " + l.MAC.String()
	}
	if l.AcceptRAOff {
		s += " accept_ra 0"
	}
	if l.NoTxOffload {
		s += " tx-checksum off"
	}
	if l.Up {
		s += " up"
	}
	return s
}

// String formats the address in the words of `ip address`.
func (a Addr) String() string { return "address " + a.Prefix.String() + " dev " + a.Dev }

// String formats the route in the words of `ip route`.
func (r Route) String() string {
	s := "route "
	if r.Kind != Forward {
		s += string(r.Kind) + " "
	}
	s += r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Dev != "" {
		s += " dev " + r.Dev
	}
	if r.Protocol != 0 {
		s += fmt.Sprintf(" proto %d", r.Protocol)
	}
	switch r.Scope {
	case ScopeGlobal:
	case ScopeLink:
		s += " scope link"
	default:
		s += fmt.Sprintf(" scope %d", r.Scope)
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}

// String formats the entry in the words of `ip neigh`.
func (n Neighbour) String() string {
	return "neighbour " + n.IP.String() + " dev " + n.Dev + " lladdr " + n.MAC.String()
}

// String formats the entry in the words of `bridge fdb`.
func (f FDBEntry) String() string {
	return "fdb " + f.MAC.String() + " dev " + f.Dev + " dst " + f.Dst.String()
}

// String formats the port in the words of `ip fou`.
func (f FOUPort) String() string { return fmt.Sprintf("fou port %d ipproto 4", f.Port) }

// String formats the public part of the tunnel.
func (t Tunnel) String() string {
	return fmt.Sprintf("wireguard %s listen-port %d", t.Dev, t.ListenPort)
}

// String formats the public part of the peer.
func (p Peer) String() string {
	return fmt.Sprintf("wireguard %s peer %s endpoint %v", p.Dev, p.PublicKey.Base64(), p.Endpoint)
}

// String names the subject of the command.
func (c Command) String() string { return "command for " + c.ID }
