package doctor

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/ctrl"
)

// secured is a packet as IPsec policies select it.
type secured struct {
	dir      ctrl.Direction
	src, dst netip.Addr
	protocol uint8
	dstPort  uint16
	what     string
}

// selects reports whether a policy selects a packet.
func selects(p ctrl.ForeignPolicy, s secured) bool {
	return p.Dir == s.dir && p.Src.Contains(s.src) && p.Dst.Contains(s.dst) && p.SrcPort == 0 &&
		(p.Protocol == 0 || p.Protocol == s.protocol) && (p.DstPort == 0 || p.DstPort == s.dstPort)
}

// securedPackets lists the packets between this node and another one.
func (f *Facts) securedPackets(n Node) (all []secured) {
	pod, far := f.subnet().Masked().Addr().Next().Next(), n.Subnet.Masked().Addr().Next().Next()
	const tcp = unix.IPPROTO_TCP
	for _, d := range []ctrl.Direction{ctrl.Out, ctrl.Through} {
		all = append(all, secured{d, pod, far, tcp, 80, "packets of pods to " + n.Name},
			secured{d, far, pod, tcp, 80, "packets of pods of " + n.Name})
	}
	self, port := n.Underlay.Src, f.tunnelPort()
	if port != 0 && self.IsValid() && n.Public.IsValid() {
		all = append(all,
			secured{ctrl.Out, self, n.Public, unix.IPPROTO_UDP, port, "tunnel packets to " + n.Name},
			secured{ctrl.In, n.Public, self, unix.IPPROTO_UDP, port, "tunnel packets from " + n.Name})
	}
	return all
}

// findForeignIPsec looks for IPsec policies of other programs that drop packets of pods or of the
// tunnel, or want them transformed without a security association that could do it.
func findForeignIPsec(f *Facts) []Finding {
	if f.backend() == "ipsec" {
		return nil
	}
	var out []Finding
	named := map[ctrl.ForeignPolicy]bool{}
	for _, n := range f.Nodes {
		for _, s := range f.securedPackets(n) {
			var winner *ctrl.ForeignPolicy
			for i, p := range f.IPsec {
				if selects(p, s) && (winner == nil || p.Priority < winner.Priority) {
					winner = &f.IPsec[i]
				}
			}
			if winner == nil || named[*winner] || !winner.Blocks && (!winner.Transforms || winner.Associated) {
				continue
			}
			named[*winner] = true
			effect := "blocks"
			if !winner.Blocks {
				effect = "wants IPsec, without a security association, for"
			}
			out = append(out, Finding{
				Evidence: fmt.Sprintf("the IPsec policy src %s dst %s dir %s priority %d %s %s", winner.Src, winner.Dst,
					winner.Dir, winner.Priority, effect, s.what),
				Cause: "an IPsec policy of another program (strongSwan, Libreswan, ip xfrm) covers the packets, so they " +
					"are lost",
				Remedy: fmt.Sprintf("ip xfrm policy; ip xfrm policy delete src %s dst %s dir %s, or exclude these "+
					"packets in that program", winner.Src, winner.Dst, winner.Dir),
			})
		}
	}
	return out
}
