package ctrl

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"weft/encap"
	"weft/lease"
)

const (
	defaultVNI = 1
	maxVNI     = 1<<24 - 1 // RFC 7348, section 5
	// kernelVXLANPort is what Linux takes when no port is given (udp_port in drivers/net/vxlan), and so flannel's.
	kernelVXLANPort = 8472
)

// vxlan carries each family in a VXLAN device of its own; every node has a route, a neighbour and a forwarding entry.
type vxlan struct {
	network       lease.Network
	self          Self
	vni, port     int
	gbp, learning bool
	directRouting bool
	mtu4, mtu6    int // of the devices, bytes
	vtep, vtep6   MAC
	data, dataV6  json.RawMessage
}

// vxlanData is what a node publishes.
type vxlanData struct {
	VNI     int
	VtepMAC string
}

// newVXLAN reads VNI, Port, MTU, GBP, Learning and DirectRouting.
func newVXLAN(n lease.Network, s Self) (Backend, error) {
	c := struct {
		VNI, Port, MTU               int
		GBP, Learning, DirectRouting bool
	}{VNI: defaultVNI}
	if err := decode(n, &c); err != nil {
		return nil, err
	}
	if err := errors.Join(inRange("VNI", c.VNI, 0, maxVNI), inRange("Port", c.Port, 0, 65535), inRange("MTU", c.MTU, 0, 65535)); err != nil {
		return nil, err
	}
	if c.Port == 0 {
		c.Port = kernelVXLANPort
	}
	v := &vxlan{network: n, self: s, vni: c.VNI, port: c.Port, gbp: c.GBP, learning: c.Learning, directRouting: c.DirectRouting}
	var err error
	if v.mtu4, err = deviceMTU(n, s, c.MTU, encap.OverheadVXLAN4); err != nil {
		return nil, err
	}
	if v.mtu6, err = deviceMTU(n, s, c.MTU, encap.OverheadVXLAN6); err != nil {
		return nil, err
	}
	v.vtep, v.data = v.end(s.VTEP, s.Iface.Public.String())
	v.vtep6, v.dataV6 = v.end(s.VTEP6, s.Iface.Public6.String())
	return v, nil
}

// end gives the Ethernet address of our end of the tunnels and what is published of it. An address that no device has
// yet is made from the node's own, so it is the same after a reboot and the other nodes' entries stay right. The
// published text is flannel's to the byte: its kube mode finds the address by splitting it.
func (v *vxlan) end(present MAC, public string) (MAC, json.RawMessage) {
	m := present
	if m == (MAC{}) {
		sum := sha256.Sum256(fmt.Appendf(nil, "vtep %d %s", v.vni, public))
		m = MAC(sum[:6])
		m[0] = m[0]&^1 | 2 // unicast, locally administered (IEEE 802)
	}
	return m, fmt.Appendf(nil, `{"VNI":%d,"VtepMAC":"%v"}`, v.vni, m)
}

// device is the name of a family's device.
func (v *vxlan) device(v6 bool) string {
	if v6 {
		return fmt.Sprintf("flannel-v6.%d", v.vni)
	}
	return fmt.Sprintf("flannel.%d", v.vni)
}

// Plan makes a device per family of ours and a path per node and family.
func (v *vxlan) Plan(self lease.Lease, all []lease.Lease) State {
	s, paths := newPlan(v.network, "vxlan", self, all)
	for _, f := range families(v.network, self) {
		l := Link{
			Name: v.device(f.v6), Kind: KindVXLAN, MTU: v.mtu4, MAC: v.vtep, Up: true, IgnoreRA: true,
			VXLAN: VXLAN{VNI: v.vni, Port: v.port, Local: v.self.Iface.Addr, Parent: v.self.Iface.Name, Learning: v.learning, GBP: v.gbp},
		}
		if f.v6 {
			l.MTU, l.MAC, l.VXLAN.Local = v.mtu6, v.vtep6, v.self.Iface.Addr6
		}
		s.Links = append(s.Links, l)
		s.Addrs = append(s.Addrs, Addr{Dev: l.Name, Prefix: hostPrefix(gatewayAddr(f.subnet))})
	}
	owner := map[MAC]string{v.vtep: "this node", v.vtep6: "this node"}
	for _, p := range paths {
		if err := v.path(&s, p, owner); err != nil {
			s.unreachable(p, err)
		}
	}
	return s
}

// path adds what leads to one node. owner tells whose each tunnel end is: with two nodes under one address (cloned
// machines) the kernel could only know one.
func (v *vxlan) path(s *State, p path, owner map[MAC]string) error {
	if v.directRouting && v.self.Iface.OnLink.Contains(p.public) {
		s.Routes = append(s.Routes, Route{Dst: p.subnet.Masked(), Via: p.public, Dev: v.self.Iface.Name, Protocol: RouteProtocol})
		return nil
	}
	var d vxlanData
	if err := json.Unmarshal(p.data, &d); err != nil {
		return fmt.Errorf("its lease has no readable vxlan data: %w", err)
	}
	m, err := ParseMAC(d.VtepMAC)
	if err != nil {
		return fmt.Errorf("its lease has no usable VtepMAC: %w", err)
	}
	// Data without a VNI, and with only 16 bits of it, is of older flannels.
	if d.VNI != 0 && uint16(d.VNI) != uint16(v.vni) {
		return fmt.Errorf("its VNI is %d, ours is %d", d.VNI, v.vni)
	}
	if other, taken := owner[m]; taken && other != p.lease.Node {
		return fmt.Errorf("its VtepMAC %s is also that of %s", m, other)
	}
	owner[m] = p.lease.Node
	dev, via := v.device(p.v6), gatewayAddr(p.subnet)
	s.Neighbours = append(s.Neighbours, Neighbour{Dev: dev, IP: via, MAC: m})
	s.FDB = append(s.FDB, FDBEntry{Dev: dev, MAC: m, Dst: p.public})
	s.Routes = append(s.Routes, Route{Dst: p.subnet.Masked(), Via: via, Dev: dev, OnLink: true, Protocol: RouteProtocol})
	return nil
}

// Spec publishes the VNI and our tunnel ends.
func (v *vxlan) Spec() Spec {
	sp := Spec{Type: "vxlan", LeaseType: "vxlan", MTU: v.mtu4}
	if v.network.Network.IsValid() {
		sp.Data = v.data
	} else {
		sp.MTU = v.mtu6
	}
	if v.network.IPv6Network.IsValid() {
		sp.DataV6 = v.dataV6
	}
	return sp
}
