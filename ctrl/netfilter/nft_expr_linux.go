package netfilter

import (
	"bytes"
	"math/bits"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Where the fields lie that rules look at, and how long they are, in bytes: RFC 791 section 3.1, RFC 8200 section 3,
// RFC 768.
const (
	srcOffset4, dstOffset4 = 12, 16
	srcOffset6, dstOffset6 = 8, 24
	udpPortOffset          = 2
	udpPortLen             = 2
	markLen                = 4
)

// register is the first of the kernel's 128-bit registers; each match loads it anew.
const register = unix.NFT_REG_1

// addrField says where the source or destination address lies in the inner header.
func addrField(f family, source bool) (offset, length uint32) {
	switch {
	case f == ipv4 && source:
		return srcOffset4, 4
	case f == ipv4:
		return dstOffset4, 4
	case source:
		return srcOffset6, 16
	default:
		return dstOffset6, 16
	}
}

// encode translates a rule into the kernel's nftables expressions. A jump has none: where iptables jumps from a built-in
// chain, nftables has a base chain of our own.
func encode(f family, r rule) []expr.Any {
	var e []expr.Any
	e = append(e, encodeAddr(f, true, r.src)...)
	e = append(e, encodeAddr(f, false, r.dst)...)
	if r.udpPort != 0 {
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
			&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: udpPortOffset, Len: udpPortLen},
			&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binaryutil.BigEndian.PutUint16(r.udpPort)})
	}
	if r.mark != 0 {
		mark := binaryutil.NativeEndian.PutUint32(r.mark)
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
			&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: markLen, Mask: mark, Xor: make([]byte, markLen)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: mark})
	}
	return append(e, encodeVerdict(f, r.verdict)...)
}

func encodeAddr(f family, source bool, m addrMatch) []expr.Any {
	if !m.prefix.IsValid() {
		return nil
	}
	offset, length := addrField(f, source)
	e := []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
	if !m.prefix.IsSingleIP() {
		e = append(e, &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: length,
			Mask: prefixMask(m.prefix.Bits(), int(length)), Xor: make([]byte, length)})
	}
	op := expr.CmpOpEq
	if m.not {
		op = expr.CmpOpNeq
	}
	return append(e, &expr.Cmp{Op: op, Register: register, Data: m.prefix.Masked().Addr().AsSlice()})
}

// prefixMask is a netmask of n leading ones.
func prefixMask(n, length int) []byte {
	m := make([]byte, length)
	for i := range m {
		ones := min(max(n-8*i, 0), 8)
		m[i] = ^byte(0xff >> ones)
	}
	return m
}

// encodeVerdict ends a rule. A source is kept by translating it to itself: that binds the flow, so no chain that comes
// later, in whatever table, translates it again, which no verdict of ours could prevent (nf_nat_inet_fn in the kernel's
// net/netfilter/nf_nat_core.c asks the chains only until one has bound the flow).
func encodeVerdict(f family, v verdict) []expr.Any {
	switch v {
	case back:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case accept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case masquerade:
		return []expr.Any{&expr.Masq{}}
	case masqueradeRandom:
		return []expr.Any{&expr.Masq{FullyRandom: true}}
	case noTrack:
		return []expr.Any{&expr.Notrack{}}
	case keepSource:
		offset, length := addrField(f, true)
		protocol := uint32(unix.NFPROTO_IPV4)
		if f == ipv6 {
			protocol = unix.NFPROTO_IPV6
		}
		return []expr.Any{
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: protocol, RegAddrMin: register},
		}
	}
	return nil
}

// decoded is a kernel rule of anybody's, as far as we understand it.
type decoded struct {
	rule
	marked   bool // the packet's mark is looked at
	rewrites bool // it changes the source
	others   int  // expressions that rule cannot express
}

func (d decoded) exact() bool { return d.others == 0 && d.verdict != 0 }

// field is what a register was loaded with.
type field uint8

const (
	fieldOther field = iota
	fieldSrc
	fieldDst
	fieldMark
	fieldProtocol
	fieldPort
)

// decode is the reverse of encode. It takes rules of other programs too, as far as their conditions are plain prefixes.
func decode(f family, exprs []expr.Any) decoded {
	var (
		d      decoded
		loaded field
		masked []byte
		udp    bool
	)
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Meta:
			loaded, masked = metaField(e), nil
			d.marked = d.marked || loaded == fieldMark
		case *expr.Payload:
			loaded, masked = payloadField(f, e), nil
		case *expr.Bitwise:
			masked = e.Mask
			if len(bytes.Trim(e.Xor, "\x00")) > 0 {
				d.others++
			}
		case *expr.Cmp:
			if loaded == fieldProtocol && e.Op == expr.CmpOpEq && bytes.Equal(e.Data, []byte{unix.IPPROTO_UDP}) {
				udp = true
			} else if !d.compare(f, loaded, masked, e) {
				d.others++
			}
		default:
			d.end(e, loaded)
		}
	}
	if udp != (d.udpPort != 0) {
		d.others++
	}
	return d
}

func metaField(e *expr.Meta) field {
	switch {
	case e.SourceRegister:
		return fieldOther
	case e.Key == expr.MetaKeyMARK:
		return fieldMark
	case e.Key == expr.MetaKeyL4PROTO:
		return fieldProtocol
	}
	return fieldOther
}

func payloadField(f family, e *expr.Payload) field {
	srcAt, length := addrField(f, true)
	dstAt, _ := addrField(f, false)
	switch network := e.Base == expr.PayloadBaseNetworkHeader; {
	case network && e.Offset == srcAt && e.Len <= length:
		return fieldSrc
	case network && e.Offset == dstAt && e.Len <= length:
		return fieldDst
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == udpPortOffset && e.Len == udpPortLen:
		return fieldPort
	}
	return fieldOther
}

// compare takes one comparison into the rule and tells whether rule can express it.
func (d *decoded) compare(f family, loaded field, masked []byte, e *expr.Cmp) bool {
	equal := e.Op == expr.CmpOpEq
	switch loaded {
	case fieldSrc, fieldDst:
		m, ok := compareAddr(f, masked, e)
		if loaded == fieldSrc {
			d.src = m
		} else {
			d.dst = m
		}
		return ok
	case fieldMark:
		if !equal || len(e.Data) != markLen || !bytes.Equal(masked, e.Data) {
			return false
		}
		d.mark = binaryutil.NativeEndian.Uint32(e.Data)
		return d.mark != 0
	case fieldPort:
		if !equal || len(e.Data) != udpPortLen || masked != nil {
			return false
		}
		d.udpPort = binaryutil.BigEndian.Uint16(e.Data)
		return true
	}
	return false
}

// compareAddr reads a prefix out of a comparison. Fewer bytes than an address has are a prefix too: nft loads just those.
func compareAddr(f family, masked []byte, e *expr.Cmp) (addrMatch, bool) {
	_, length := addrField(f, true)
	n := 8 * len(e.Data)
	if masked != nil {
		n = 0
		for _, b := range masked {
			n += bits.OnesCount8(b)
		}
		if len(masked) != len(e.Data) || !bytes.Equal(masked, prefixMask(n, len(masked))) {
			return addrMatch{}, false
		}
	}
	if len(e.Data) > int(length) || e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
		return addrMatch{}, false
	}
	addr, _ := netip.AddrFromSlice(append(bytes.Clone(e.Data), make([]byte, int(length)-len(e.Data))...))
	return addrMatch{prefix: netip.PrefixFrom(addr, n), not: e.Op == expr.CmpOpNeq}, true
}

// end takes the expression that decides into the rule.
func (d *decoded) end(e expr.Any, loaded field) {
	switch e := e.(type) {
	case *expr.Verdict:
		switch e.Kind {
		case expr.VerdictReturn:
			d.verdict = back
		case expr.VerdictAccept:
			d.verdict = accept
		case expr.VerdictJump:
			d.verdict, d.to = jump, e.Chain
		default:
			d.others++
		}
	case *expr.Masq:
		d.verdict, d.rewrites = masquerade, true
		if e.FullyRandom {
			d.verdict = masqueradeRandom
		}
		if e.Random || e.Persistent || e.ToPorts {
			d.others++
		}
	case *expr.NAT:
		d.rewrites = e.Type == expr.NATTypeSourceNAT
		plain := !e.Random && !e.FullyRandom && !e.Persistent && !e.Prefix && e.RegProtoMin == 0
		if d.rewrites && plain && loaded == fieldSrc {
			d.verdict = keepSource
		} else {
			d.others++
		}
	case *expr.Target: // how iptables-nft writes what has no expression of its own
		d.rewrites = rewrites(parsed{target: e.Name})
		d.others++
	case *expr.Notrack:
		d.verdict = noTrack
	default:
		d.others++
	}
}
