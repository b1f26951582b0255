package ctrl

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForeignPolicy is an IPsec policy of another program.
type ForeignPolicy struct {
	Dir              Direction
	Src, Dst         netip.Prefix
	Protocol         uint8  // of IP; 0: any
	SrcPort, DstPort uint16 // 0: any
	Priority         int    // the policy with the lowest wins
	Blocks           bool   // packets are dropped
	// Transforms is set if packets must be encrypted or authenticated, and Associated if there is a
	// security association for that.
	Transforms, Associated bool
}

// ForeignPolicies lists the IPsec policies that are not Weft's, without those of sockets, marks and
// single interfaces. It returns none if the kernel has no IPsec.
func (k *Kernel) ForeignPolicies() ([]ForeignPolicy, error) {
	if present, err := k.xfrm.present(); !present || err != nil {
		return nil, err
	}
	var out []ForeignPolicy
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		policies, err := dump("IPsec policies", func() ([]netlink.XfrmPolicy, error) { return k.h.XfrmPolicyList(fam) })
		if errors.Is(err, unix.EPERM) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		states, err := dump("security associations", func() ([]netlink.XfrmState, error) { return k.h.XfrmStateList(fam) })
		if err != nil {
			return nil, err
		}
		for _, p := range policies {
			if v, ok := foreignPolicy(p, states); ok {
				out = append(out, v)
			}
		}
	}
	return out, nil
}

func foreignPolicy(p netlink.XfrmPolicy, states []netlink.XfrmState) (v ForeignPolicy, ok bool) {
	dir, ok := directions()[p.Dir]
	if !ok || p.Src == nil || p.Dst == nil || p.Mark != nil || p.Ifid != 0 || p.Ifindex != 0 {
		return ForeignPolicy{}, false
	}
	v = ForeignPolicy{Dir: dir, Src: prefixOf(p.Src), Dst: prefixOf(p.Dst), Protocol: uint8(p.Proto),
		SrcPort: uint16(p.SrcPort), DstPort: uint16(p.DstPort), Priority: p.Priority,
		Blocks: p.Action == netlink.XFRM_POLICY_BLOCK, Associated: true}
	for _, t := range p.Tmpls {
		if t.Reqid == PolicyReqID {
			return ForeignPolicy{}, false
		}
		if t.Optional == 0 {
			v.Transforms = true
			v.Associated = v.Associated && associated(v, t, states)
		}
	}
	return v, true
}

// associated reports whether there is a security association for a template. In transport mode it
// is one between the hosts of the policy.
func associated(v ForeignPolicy, t netlink.XfrmPolicyTmpl, states []netlink.XfrmState) bool {
	for _, s := range states {
		if s.Proto != t.Proto || t.Reqid != 0 && s.Reqid != t.Reqid {
			continue
		}
		src, dst := addrOf(s.Src), addrOf(s.Dst)
		if t.Mode == netlink.XFRM_MODE_TUNNEL && src == addrOf(t.Src) && dst == addrOf(t.Dst) ||
			t.Mode != netlink.XFRM_MODE_TUNNEL && v.Src.Contains(src) && v.Dst.Contains(dst) {
			return true
		}
	}
	return false
}
