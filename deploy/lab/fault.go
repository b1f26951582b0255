package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unusedMAC is a locally administered address that no device has: a bridge floods frames for it and
// every port drops them.
var unusedMAC = net.HardwareAddr{0x02, 0, 0, 0xde, 0xad, 0}

// Partition silently drops all packets between two nodes (or a node and Root) in both directions,
// as a failed switch does. Both must be in the same underlay subnet.
func (l *Lab) Partition(a, b *Node) error { return l.setPartition(a, b, true) }

// Heal ends a partition.
func (l *Lab) Heal(a, b *Node) error { return l.setPartition(a, b, false) }

func (l *Lab) setPartition(a, b *Node, blocked bool) error {
	if a.subnet != b.subnet || l.options.Direct && (a == l.Root || b == l.Root) {
		return fmt.Errorf("partition %s and %s: not in the same underlay subnet", a.Name, b.Name)
	}
	return errors.Join(a.setBlocked(b, blocked), b.setBlocked(a, blocked))
}

// setBlocked points the node's neighbour entries for a peer at an unused hardware address, or
// removes them.
func (n *Node) setBlocked(peer *Node, blocked bool) error {
	device := underlayPort
	if n == n.lab.Root {
		device = bridgeName(n.subnet)
	}
	for _, a := range []netip.Addr{peer.Addr, peer.Addr6} {
		if !a.IsValid() {
			continue
		}
		err := n.change("set neighbour "+a.String()+" on", device, func(l netlink.Link) error {
			entry := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice(),
				HardwareAddr: unusedMAC, State: unix.NUD_PERMANENT}
			if blocked {
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

// KillNode fails a node as a power cut does: it kills its processes and removes its link. The node
// stays in Nodes.
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

// ChangeAddress replaces the node's underlay address of the same family and restores the default
// route.
func (n *Node) ChangeAddress(to netip.Addr) error {
	addr, underlay := &n.Addr, n.lab.options.Underlay
	if to.Is6() {
		addr, underlay = &n.Addr6, n.lab.options.Underlay6
	}
	if !addr.IsValid() || !underlay[n.subnet].Contains(to) {
		return fmt.Errorf("%s: change address to %s: not in the underlay subnet of this node",
			n.Name, to)
	}
	subnet := underlay[n.subnet]
	if err := n.DeleteAddr(underlayPort, netip.PrefixFrom(*addr, subnet.Bits())); err != nil {
		return err
	}
	*addr = to
	if err := n.AddAddr(underlayPort, netip.PrefixFrom(to, subnet.Bits())); err != nil {
		return err
	}
	if n.lab.options.Direct {
		return nil
	}
	return n.AddRoute(defaultRoute(to), hostOf(subnet, 1), underlayPort)
}
