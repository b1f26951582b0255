package ctrl

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
)

// Direction is the direction of the packets that an IPsec policy applies to, in the words of
// `ip xfrm policy`.
type Direction string

// The directions of a Policy.
const (
	Out     Direction = "out" // leave this host
	In      Direction = "in"  // are for this host
	Through Direction = "fwd" // are forwarded
)

// PolicyReqID joins policies and security associations (`reqid` of `ip xfrm`). It is flannel's.
const PolicyReqID = 11

// Policy is an IPsec policy: packets of Dir from Src to Dst travel in an ESP tunnel from TunnelSrc
// to TunnelDst. A policy of another kind has invalid tunnel addresses; plans have none.
type Policy struct {
	Dir                  Direction
	Src, Dst             netip.Prefix // masked
	TunnelSrc, TunnelDst netip.Addr
	ReqID                int
	Priority             int // 0 precedes all; wanted policies have it, as flannel's
}

// PolicyID identifies a policy in the kernel.
type PolicyID struct {
	Dir      Direction
	Src, Dst netip.Prefix
}

func (p Policy) id() PolicyID { return PolicyID{p.Dir, p.Src, p.Dst} }

// Association is a pair of nodes that exchange packets of their networks over IPsec. IKE keeps
// their security associations; see package ike.
type Association struct {
	Local, Remote       netip.Addr // tunnel addresses
	LocalNet, RemoteNet netip.Prefix
}

// tunnelEnds identifies an association in the kernel.
type tunnelEnds struct{ local, remote netip.Addr }

func (a Association) ends() tunnelEnds { return tunnelEnds{a.Local, a.Remote} }

// Policies returns the three policies of an association.
func (a Association) Policies() []Policy {
	out := Policy{Dir: Out, Src: a.LocalNet, Dst: a.RemoteNet, TunnelSrc: a.Local,
		TunnelDst: a.Remote, ReqID: PolicyReqID}
	in := Policy{Dir: In, Src: a.RemoteNet, Dst: a.LocalNet, TunnelSrc: a.Remote,
		TunnelDst: a.Local, ReqID: PolicyReqID}
	through := in
	through.Dir = Through
	return []Policy{out, in, through}
}

// IKE holds the settings of the key exchange.
type IKE struct {
	PSK         Secret
	ESPProposal string // in strongSwan's notation
	UDPEncap    bool   // ESP in UDP even without NAT
}

// Secret is a text that must not be shown. It hides itself from logs, formatting and JSON.
type Secret string

const hiddenSecret = "(hidden)"

// String hides the secret.
func (Secret) String() string { return hiddenSecret }

// GoString hides the secret.
func (Secret) GoString() string { return hiddenSecret }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte(hiddenSecret), nil }

// LogValue hides the secret.
func (Secret) LogValue() slog.Value { return slog.StringValue(hiddenSecret) }

// ownsPolicy reports whether Weft owns a policy: it has the form of its own, which is flannel's,
// and both ends are inside the networks. Other programs may use the same reqid, but hardly with the
// first priority.
func (o ownership) ownsPolicy(p Policy) bool {
	return p.ReqID == PolicyReqID && p.Priority == 0 && p.TunnelSrc.IsValid() &&
		Contains(o.networks, p.Src) && Contains(o.networks, p.Dst)
}

// policies sets the wanted policies and deletes the owned ones that are not wanted, with the
// security associations that only they used.
func (d *differ) policies() {
	have, existing := setOf(d.have.Policies), map[PolicyID]Policy{}
	for _, h := range d.have.Policies {
		existing[h.id()] = h
	}
	wanted, ends := map[PolicyID]bool{}, map[tunnelEnds]bool{}
	for _, a := range d.want.Associations {
		ends[a.ends()] = true
	}
	for _, w := range d.want.Policies {
		wanted[w.id()] = true
		h, taken := existing[w.id()]
		switch {
		case have[w]:
		case taken && !d.owned.ownsPolicy(h):
			d.conflicts = append(d.conflicts, fmt.Sprintf("%s blocks %s", h, w))
		default:
			d.add(stageEntries, Replace, w)
		}
	}
	stale := map[tunnelEnds]bool{}
	for _, h := range d.have.Policies {
		if wanted[h.id()] || !d.owned.ownsPolicy(h) {
			continue
		}
		d.add(stageClear, Delete, h)
		if e := (tunnelEnds{h.TunnelSrc, h.TunnelDst}); h.Dir == Out && !ends[e] && !stale[e] {
			stale[e] = true
			d.add(stageClear, Delete, Association{Local: e.local, Remote: e.remote})
		}
	}
}

// AllAssociations returns the associations of a plan, in the order of its parts.
func (p Plan) AllAssociations() []Association {
	all := slices.Clone(p.State.Associations)
	for part := range p.Parts.All() {
		for _, o := range part.Objects {
			if a, ok := o.(Association); ok {
				all = append(all, a)
			}
		}
	}
	return all
}

func (Policy) device() string      { return "" }
func (Association) device() string { return "" }

// String formats the policy in the words of `ip xfrm policy`.
func (p Policy) String() string {
	s := fmt.Sprintf("policy src %v dst %v dir %s", p.Src, p.Dst, p.Dir)
	if p.Priority != 0 {
		s += fmt.Sprintf(" priority %d", p.Priority)
	}
	if p.TunnelSrc.IsValid() {
		s += fmt.Sprintf(" tmpl src %v dst %v proto esp reqid %d mode tunnel", p.TunnelSrc,
			p.TunnelDst, p.ReqID)
	}
	return s
}

// String names both ends.
func (a Association) String() string {
	return fmt.Sprintf("security associations of %v and %v", a.Local, a.Remote)
}
