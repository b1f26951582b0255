package ctrl

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// addrList writes the addresses that there are.
func addrList(as ...netip.Addr) string {
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

// ParseMAC reads an address as MAC.String writes it.
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

// String writes the address as the kernel's tools do: 0a:1b:2c:3d:4e:5f.
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

// Key is a WireGuard key: private, public or pre-shared. Its String does not show it, as most keys are secret.
type Key [32]byte

// ParseKey reads a key in base64, as `wg genkey` prints it.
func ParseKey(s string) (Key, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return Key{}, errors.New("key is not base64") // the cause would quote it
	}
	if len(b) != len(Key{}) {
		return Key{}, fmt.Errorf("key has %d bytes, not %d", len(b), len(Key{}))
	}
	return Key(b), nil
}

// Base64 is the key itself, as ParseKey reads it.
func (k Key) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String hides the key.
func (k Key) String() string {
	if k == (Key{}) {
		return "(none)"
	}
	return "(hidden)"
}

// String names the device and what of it is set.
func (l Link) String() string {
	s := "device " + l.Name
	if l.Kind != "" {
		s += " type " + string(l.Kind)
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
	if l.IgnoreRA {
		s += " accept_ra 0"
	}
	if l.Software {
		s += " tx-checksum off"
	}
	if l.Up {
		s += " up"
	}
	return s
}

// String shows the address as `ip address` takes it.
func (a Addr) String() string { return "address " + a.Prefix.String() + " dev " + a.Dev }

// String shows a route in the words of `ip route`.
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
	if r.LinkOnly {
		s += " scope link"
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}

// String shows the entry as `ip neigh` does.
func (n Neighbour) String() string {
	return "neighbour " + n.IP.String() + " dev " + n.Dev + " lladdr " + n.MAC.String()
}

// String shows the entry as `bridge fdb` does.
func (f FDBEntry) String() string {
	return "fdb " + f.MAC.String() + " dev " + f.Dev + " dst " + f.Dst.String()
}

// String shows the port as `ip fou` does.
func (f FOUPort) String() string { return fmt.Sprintf("fou port %d ipproto 4", f.Port) }

// String shows what is public of the tunnel.
func (t Tunnel) String() string {
	return fmt.Sprintf("wireguard %s listen-port %d", t.Dev, t.ListenPort)
}

// String shows what is public of the peer.
func (p Peer) String() string {
	return fmt.Sprintf("wireguard %s peer %s endpoint %v", p.Dev, p.PublicKey.Base64(), p.Endpoint)
}

// String names what the command is about.
func (c Command) String() string { return "command for " + c.ID }
