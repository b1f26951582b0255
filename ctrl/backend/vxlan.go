package backend

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/ctrl"
	"weft/encap"
	"weft/lease"
)

const (
	defaultVNI = 1
	maxVNI     = 1<<24 - 1 // RFC 7348, section 5
	// kernelVXLANPort is the port that Linux takes if none is given (udp_port in
	// drivers/net/vxlan), and flannel with it.
	kernelVXLANPort = 8472
)

// vxlan carries each family in its own VXLAN device. Every peer has a route, a neighbour and a
// forwarding entry.
type vxlan struct {
	network       lease.Network
	local         LocalNode
	vni, port     int
	gbp, learning bool
	directRouting bool
	mtu4, mtu6    int // of the devices, bytes
	vtep, vtep6   ctrl.MAC
}

// vxlanData is the published data of a node.
type vxlanData struct {
	VNI     int
	VtepMAC string
}

// vxlanConfig holds the backend's keys.
type vxlanConfig struct {
	VNI, Port, MTU               int
	GBP, Learning, DirectRouting bool
}

func readVXLANConfig(n lease.Network) (vxlanConfig, error) {
	c := vxlanConfig{VNI: defaultVNI}
	if err := decode(n, &c); err != nil {
		return c, err
	}
	err := errors.Join(inRange("VNI", c.VNI, 0, maxVNI), inRange("Port", c.Port, 0, 65535),
		inRange("MTU", c.MTU, 0, 65535))
	if c.Port == 0 {
		c.Port = kernelVXLANPort
	}
	return c, err
}

// newVXLAN makes a device of each family.
func newVXLAN(n lease.Network, l LocalNode) (Backend, error) {
	c, err := readVXLANConfig(n)
	if err != nil {
		return nil, err
	}
	v := &vxlan{
		network: n, local: l, vni: c.VNI, port: c.Port,
		gbp: c.GBP, learning: c.Learning, directRouting: c.DirectRouting,
	}
	if v.mtu4, err = deviceMTU(n, l, c.MTU, encap.OverheadVXLAN4); err != nil {
		return nil, err
	}
	if v.mtu6, err = deviceMTU(n, l, c.MTU, encap.OverheadVXLAN6); err != nil {
		return nil, err
	}
	v.vtep, v.vtep6 = v.linkMAC(l.VTEP, l.Iface.Public), v.linkMAC(l.VTEP6, l.Iface.Public6)
	return v, nil
}

// linkMAC returns the Ethernet address of a device: the existing one, or one derived from the
// node's public address, so that it is the same after a reboot and the entries of the other nodes
// stay valid.
func (v *vxlan) linkMAC(existing ctrl.MAC, public netip.Addr) ctrl.MAC {
	if existing != (ctrl.MAC{}) {
		return existing
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "vtep %d %s", v.vni, public))
	m := ctrl.MAC(sum[:6])
	m[0] = m[0]&^1 | 2 // unicast, locally administered (IEEE 802)
	return m
}

// prepareVXLAN reads the Ethernet addresses of VXLAN devices of an earlier run.
func prepareVXLAN(k kernel, n lease.Network, l *LocalNode, _ LocalOptions) error {
	c, err := readVXLANConfig(n)
	if err != nil {
		return err
	}
	v := &vxlan{vni: c.VNI}
	links, err := k.Links()
	if err != nil {
		return err
	}
	for mac, dev := range map[*ctrl.MAC]string{&l.VTEP: v.device(false), &l.VTEP6: v.device(true)} {
		i := slices.IndexFunc(links, func(l ctrl.Link) bool {
			return l.Name == dev &&
				l.Kind == ctrl.KindVXLAN
		})
		if i >= 0 {
			*mac = links[i].MAC
		}
	}
	return nil
}

// restoreVXLAN takes over published Ethernet addresses for devices that do not exist yet.
func restoreVXLAN(l *LocalNode, previous lease.Attrs) {
	for mac, data := range map[*ctrl.MAC]json.RawMessage{&l.VTEP: previous.BackendData,
		&l.VTEP6: previous.BackendV6Data} {
		var d vxlanData
		if *mac != (ctrl.MAC{}) || json.Unmarshal(data, &d) != nil {
			continue
		}
		if m, err := ctrl.ParseMAC(d.VtepMAC); err == nil {
			*mac = m
		}
	}
}

// device returns the device name of a family.
func (v *vxlan) device(v6 bool) string {
	if v6 {
		return fmt.Sprintf("flannel-v6.%d", v.vni)
	}
	return fmt.Sprintf("flannel.%d", v.vni)
}

// Plan returns a device per family of this node and the entries of each peer.
func (v *vxlan) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(v.network, "vxlan", self, all)
	for _, f := range families(v.network, self) {
		l := v.link(f.v6)
		s.Links = append(s.Links, l)
		s.Addrs = append(s.Addrs, gatewayOn(l.Name, f.subnet))
		s.NoTrack = append(s.NoTrack, netip.AddrPortFrom(l.VXLAN.Local, uint16(v.port)))
	}
	owner := map[deviceMAC]string{
		{v.device(false), v.vtep}: "this node", {v.device(true), v.vtep6}: "this node",
	}
	for _, p := range peers {
		if err := v.addPeer(&s, p, owner); err != nil {
			unreachable(&s, p, err)
		}
	}
	return s
}

// link returns the device of a family.
func (v *vxlan) link(v6 bool) ctrl.Link {
	l := ctrl.Link{
		Name: v.device(v6), Kind: ctrl.KindVXLAN, MTU: v.mtu4, MAC: v.vtep, Up: true,
		AcceptRAOff: true,
		VXLAN: ctrl.VXLAN{
			VNI: v.vni, Port: v.port, Local: v.local.Iface.Addr, Parent: v.local.Iface.Name,
			Learning: v.learning, GBP: v.gbp,
		},
	}
	if v6 {
		l.MTU, l.MAC, l.VXLAN.Local = v.mtu6, v.vtep6, v.local.Iface.Addr6
	}
	return l
}

// deviceMAC identifies a forwarding entry: the Ethernet address of a peer on a device of this node.
type deviceMAC struct {
	dev string
	mac ctrl.MAC
}

// addPeer adds the entries that lead to one peer. owner maps Ethernet addresses to nodes: if two
// nodes publish the same one (cloned machines), the kernel can hold entries for only one of them.
func (v *vxlan) addPeer(s *ctrl.State, p peerSubnet, owner map[deviceMAC]string) error {
	if v.directRouting && v.local.Iface.OnLink.Contains(p.public) {
		s.Routes = append(s.Routes, ctrl.Route{
			Dst: p.subnet.Masked(), Via: p.public, Dev: v.local.Iface.Name,
			Scope: p.routeScope(), Protocol: ctrl.RouteProtocol,
		})
		return nil
	}
	var d vxlanData
	if err := json.Unmarshal(p.data, &d); err != nil {
		return fmt.Errorf("lease has invalid vxlan data: %w", err)
	}
	m, err := ctrl.ParseMAC(d.VtepMAC)
	if err != nil {
		return fmt.Errorf("lease has an invalid VtepMAC: %w", err)
	}
	// Older flannel versions publish no VNI, or its low 16 bits only.
	if d.VNI != 0 && uint16(d.VNI) != uint16(v.vni) {
		return fmt.Errorf("VNI is %d, this node's is %d", d.VNI, v.vni)
	}
	dev, via := v.device(p.v6), gatewayAddr(p.subnet)
	if other, taken := owner[deviceMAC{dev, m}]; taken && other != p.lease.Node {
		return fmt.Errorf("VtepMAC %s is also used by %s", m, other)
	}
	owner[deviceMAC{dev, m}] = p.lease.Node
	s.Neighbours = append(s.Neighbours, ctrl.Neighbour{Dev: dev, IP: via, MAC: m})
	s.FDB = append(s.FDB, ctrl.FDBEntry{Dev: dev, MAC: m, Dst: p.public})
	s.Routes = append(s.Routes, ctrl.Route{
		Dst: p.subnet.Masked(), Via: via, Dev: dev, OnLink: true, Scope: p.routeScope(),
		Protocol: ctrl.RouteProtocol,
	})
	return nil
}

// Advertisement publishes the VNI and the Ethernet address of each device. A family without a
// device has no public address. The text is flannel's to the byte, because flannel's kube mode
// finds the address by splitting it.
func (v *vxlan) Advertisement() Advertisement {
	a := Advertisement{Type: "vxlan", Attrs: lease.Attrs{BackendType: "vxlan"}, MTU: v.mtu4}
	data := func(m ctrl.MAC) json.RawMessage {
		return fmt.Appendf(nil, `{"VNI":%d,"VtepMAC":"%v"}`,
			v.vni, m)
	}
	if v.network.Network.IsValid() {
		a.Attrs.PublicIP, a.Attrs.BackendData = v.local.Iface.Public, data(v.vtep)
		a.Devices = append(a.Devices, v.device(false))
	} else {
		a.MTU = v.mtu6
	}
	if v.network.IPv6Network.IsValid() {
		a.Attrs.PublicIPv6, a.Attrs.BackendV6Data = v.local.Iface.Public6, data(v.vtep6)
		a.Devices = append(a.Devices, v.device(true))
	}
	return a
}
