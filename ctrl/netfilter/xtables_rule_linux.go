package netfilter

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Flags and sizes of linux/netfilter/nf_nat.h, xt_mark.h, xt_tcpudp.h and xt_CT.h, rounded up to 8
// bytes as the kernel requires (XT_ALIGN).
const (
	natRandomFully = 1 << 4 // NF_NAT_RANGE_PROTO_RANDOM_FULLY
	natInfoLen4    = 24     // struct nf_nat_ipv4_multi_range_compat
	natInfoLen6    = 40     // struct nf_nat_range
	markInfoLen    = 16     // struct xt_mark_mtinfo1
	udpInfoLen     = 16     // struct xt_udp
	ctInfoLen      = 72     // struct xt_ct_target_info_v1
	ctNoTrack      = 1      // XT_CT_NOTRACK
)

// xtablesExprs translates a rule into the expressions that every version of iptables-nft lists:
// extensions of xtables for all but addresses, protocol and verdict.
func xtablesExprs(f family, r rule) ([]expr.Any, error) {
	e := append(encodeAddr(f, true, r.src), encodeAddr(f, false, r.dst)...)
	if r.udpPort != 0 {
		info := make(xt.Unknown, udpInfoLen)
		for i, port := range []uint16{0, 0xffff, r.udpPort, r.udpPort} {
			binary.NativeEndian.PutUint16(info[2*i:], port)
		}
		e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
			compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}), &expr.Match{Name: "udp", Info: &info})
	}
	if r.mark != 0 {
		info := make(xt.Unknown, markInfoLen)
		binary.NativeEndian.PutUint32(info, r.mark)
		binary.NativeEndian.PutUint32(info[4:], r.mark)
		e = append(e, &expr.Match{Name: "mark", Rev: 1, Info: &info})
	}
	if r.comment != "" {
		comment := xt.Comment(r.comment)
		e = append(e, &expr.Match{Name: "comment", Info: &comment})
	}
	target, err := xtablesTarget(f, r)
	return append(e, &expr.Counter{}, target), err
}

func xtablesTarget(f family, r rule) (expr.Any, error) {
	switch r.verdict {
	case verdictJump:
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: r.to}, nil
	case verdictReturn:
		return &expr.Verdict{Kind: expr.VerdictReturn}, nil
	case verdictAccept:
		return &expr.Verdict{Kind: expr.VerdictAccept}, nil
	case verdictDrop:
		return &expr.Verdict{Kind: expr.VerdictDrop}, nil
	case verdictMasquerade, verdictMasqueradeRandom:
		return masqueradeTarget(f, r.verdict == verdictMasqueradeRandom), nil
	case verdictNoTrack:
		info := make(xt.Unknown, ctInfoLen)
		binary.NativeEndian.PutUint16(info, ctNoTrack)
		return &expr.Target{Name: "CT", Rev: 2, Info: &info}, nil
	}
	return nil, fmt.Errorf("verdict %d not supported", r.verdict)
}

// masqueradeTarget returns the target MASQUERADE with or without --random-fully.
func masqueradeTarget(f family, random bool) expr.Any {
	info := make(xt.Unknown, natInfoLen4)
	binary.NativeEndian.PutUint32(info, 1) // number of ranges
	flags := info[4:]
	if f == ipv6 {
		info = make(xt.Unknown, natInfoLen6)
		flags = info
	}
	if random {
		binary.NativeEndian.PutUint32(flags, natRandomFully)
	}
	return &expr.Target{Name: "MASQUERADE", Info: &info}
}

// xtablesSpec returns the specification of a rule of any program, as `iptables -S` lists it as far
// as rule can express it. Unknown conditions are words that parse does not know either.
func xtablesSpec(f family, k *nftables.Rule) string {
	var native []expr.Any
	var extensions []expr.Any
	for _, e := range k.Exprs {
		switch e.(type) {
		case *expr.Match, *expr.Target, *expr.Reject:
			extensions = append(extensions, e)
		default:
			native = append(native, e)
		}
	}
	d := xtablesRule{decodedRule: decode(f, native)}
	if comment, ok := userdata.GetString(k.UserData, userdata.TypeComment); ok {
		d.comment = comment
	}
	for _, e := range extensions {
		d.addExtension(e)
	}
	for range d.unknown {
		d.words = append(d.words, "-m unknown")
	}
	words := append(d.words, d.matchSpec())
	if d.targetName != "" {
		words = append(words, "-j "+d.targetName)
	} else if d.verdict != 0 {
		words = append(words, "-j "+d.target())
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

// xtablesRule is a rule with extensions of xtables.
type xtablesRule struct {
	decodedRule
	words      []string // conditions that rule cannot express
	targetName string   // of a target that rule cannot express
}

// addExtension adds the condition or target of one extension.
func (d *xtablesRule) addExtension(e expr.Any) {
	switch e := e.(type) {
	case *expr.Match:
		if !d.addMatch(e.Name, e.Info) {
			d.words = append(d.words, "-m "+e.Name)
		}
	case *expr.Reject:
		d.targetName = "REJECT"
	case *expr.Target:
		d.addTarget(e)
	}
}

// addMatch adds the condition of a match. It reports false if rule cannot express it.
func (d *xtablesRule) addMatch(name string, info xt.InfoAny) bool {
	switch i := info.(type) {
	case *xt.Comment:
		d.comment = string(*i)
		return true
	case *xt.Udp:
		if i.SrcPorts != [2]uint16{0, 0xffff} || i.DstPorts[0] != i.DstPorts[1] || i.InvFlags != 0 {
			return false
		}
		d.udpPort = i.DstPorts[0]
		d.unknown-- // decode missed the port
		return true
	case *xt.Unknown:
		const inverted = 8
		if name != "mark" || len(*i) <= inverted || (*i)[inverted] != 0 {
			return false
		}
		mark, mask := binary.NativeEndian.Uint32(*i), binary.NativeEndian.Uint32((*i)[4:])
		if mark != mask || mark == 0 {
			d.words = append(d.words, fmt.Sprintf("-m mark --mark %#x/%#x", mark, mask))
		} else {
			d.mark = mark
		}
		return true
	}
	return false
}

// addTarget adds a target.
func (d *xtablesRule) addTarget(e *expr.Target) {
	switch {
	case e.Name == "MASQUERADE":
		d.verdict = verdictMasquerade
		if natFlags(e.Info) == natRandomFully {
			d.verdict = verdictMasqueradeRandom
		} else if natFlags(e.Info) != 0 {
			d.targetName = "MASQUERADE --to-ports ?"
		}
	case e.Name == "NOTRACK", e.Name == "CT" && isNoTrack(e.Info):
		d.verdict = verdictNoTrack
	default:
		d.targetName = e.Name
	}
}

// natFlags returns the flags of the target MASQUERADE.
func natFlags(info xt.InfoAny) uint32 {
	switch i := info.(type) {
	case *xt.NatIPv4MultiRangeCompat:
		if len(*i) == 1 {
			return uint32((*i)[0].Flags)
		}
	case *xt.Unknown:
		if len(*i) >= 4 {
			return binary.NativeEndian.Uint32(*i)
		}
	}
	return 0
}

// isNoTrack reports whether the target CT has the option --notrack: struct xt_ct_target_info
// begins with the flags.
func isNoTrack(info xt.InfoAny) bool {
	i, ok := info.(*xt.Unknown)
	return ok && len(*i) >= 2 && binary.NativeEndian.Uint16(*i) == ctNoTrack
}
