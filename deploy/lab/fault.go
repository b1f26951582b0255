package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nowhere is a hardware address (locally administered) that no device has: frames to it reach every port of a bridge and
// are taken by none.
var nowhere = net.HardwareAddr{0x02, 0, 0, 0xde, 0xad, 0}

// Partition cuts two nodes (or a node and Root) off from each other, silently and in both directions, as a broken switch
// does: packets leave and do not arrive. Only nodes in one underlay subnet can be cut.
func (l *Lab) Partition(a, b *Node) error { return l.eachWay(a, b, true) }

// Heal ends a partition.
func (l *Lab) Heal(a, b *Node) error { return l.eachWay(a, b, false) }

func (l *Lab) eachWay(a, b *Node, cut bool) error {
	if a.subnet != b.subnet || l.options.Direct && (a == l.Root || b == l.Root) {
		return fmt.Errorf("partition %s and %s: they are not neighbours", a.Name, b.Name)
	}
	return errors.Join(a.setCut(b, cut), b.setCut(a, cut))
}

// setCut makes the node send frames for the peer's addresses nowhere.
func (n *Node) setCut(peer *Node, cut bool) error {
	device := underlayPort
	if n == n.lab.Root {
		device = bridgeName(n.subnet)
	}
	for _, a := range []netip.Addr{peer.Addr, peer.Addr6} {
		if !a.IsValid() {
			continue
		}
		err := n.change("cut "+a.String()+" off on", device, func(l netlink.Link) error {
			entry := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice(), HardwareAddr: nowhere, State: unix.NUD_PERMANENT}
			if cut {
				return n.links.NeighSet(entry)
			}
			if err := n.links.NeighDel(entry); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// KillNode takes a node away as a power cut does: its processes end at once and its link is gone. It stays in Nodes.
func (l *Lab) KillNode(n *Node) error {
	for _, p := range l.Processes() {
		if p.Node == n.Name {
			p.Kill()
			<-p.Done()
		}
	}
	if err := n.DeleteLink(underlayPort); err != nil {
		return fmt.Errorf("kill node: %w", err)
	}
	return nil
}

// ChangeAddress gives the node another address on its underlay in place of the one of the same family, and the default
// route again.
func (n *Node) ChangeAddress(to netip.Addr) error {
	from, underlay := &n.Addr, n.lab.options.Underlay
	if to.Is6() {
		from, underlay = &n.Addr6, n.lab.options.Underlay6
	}
	if !from.IsValid() || !underlay[n.subnet].Contains(to) {
		return fmt.Errorf("%s: change address to %s: not in an underlay of this node", n.Name, to)
	}
	subnet := underlay[n.subnet]
	if err := n.DeleteAddr(underlayPort, netip.PrefixFrom(*from, subnet.Bits())); err != nil {
		return err
	}
	*from = to
	if err := n.AddAddr(underlayPort, netip.PrefixFrom(to, subnet.Bits())); err != nil {
		return err
	}
	if n.lab.options.Direct {
		return nil
	}
	return n.AddRoute(defaultRoute(to), hostOf(subnet, 1), underlayPort)
}
