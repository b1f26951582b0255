package netfilter

import (
	"bytes"
	"math/bits"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Offsets and lengths in bytes of the matched fields: RFC 791 section 3.1, RFC 8200 section 3,
// RFC 768.
const (
	srcOffset4, dstOffset4 = 12, 16
	srcOffset6, dstOffset6 = 8, 24
	udpPortOffset          = 2
	udpPortLen             = 2
	markLen                = 4
)

// register is the first of the kernel's 128-bit registers. Every match loads it before use.
const register = unix.NFT_REG_1

// addrField returns the offset and length of the source or destination address in the IP header.
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

// encode translates a rule into nftables expressions. A jump has none: in place of a jump from a
// built-in chain, nftables has a base chain.
func encode(f family, r rule) []expr.Any {
	var e []expr.Any
	e = append(e, encodeAddr(f, true, r.src)...)
	e = append(e, encodeAddr(f, false, r.dst)...)
	if r.udpPort != 0 {
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
			compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
			load(expr.PayloadBaseTransportHeader, udpPortOffset, udpPortLen),
			compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(r.udpPort)))
	}
	if r.mark != 0 {
		mark := binaryutil.NativeEndian.PutUint32(r.mark)
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
			mask(mark),
			compare(expr.CmpOpEq, mark))
	}
	return append(e, encodeVerdict(f, r.verdict)...)
}

func encodeAddr(f family, source bool, m addrMatch) []expr.Any {
	if !m.prefix.IsValid() {
		return nil
	}
	offset, length := addrField(f, source)
	e := []expr.Any{load(expr.PayloadBaseNetworkHeader, offset, length)}
	if !m.prefix.IsSingleIP() {
		e = append(e, mask(prefixMask(m.prefix.Bits(), int(length))))
	}
	op := expr.CmpOpEq
	if m.not {
		op = expr.CmpOpNeq
	}
	return append(e, compare(op, m.prefix.Masked().Addr().AsSlice()))
}

// load returns the expression that loads a header field into the register.
func load(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
}

// mask returns the expression that masks the register.
func mask(m []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register,
		Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))}
}

// compare returns the expression that compares the register with data.
func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: register, Data: data}
}

// prefixMask returns a netmask of n leading ones, length bytes long.
func prefixMask(n, length int) []byte {
	m := make([]byte, length)
	for i := range m {
		ones := min(max(n-8*i, 0), 8)
		m[i] = ^byte(0xff >> ones)
	}
	return m
}

// encodeVerdict translates a verdict. verdictKeepSource translates the source to itself. That binds
// the flow, so no later chain of any table translates it again, which an accept verdict could not
// prevent (nf_nat_inet_fn in the kernel's net/netfilter/nf_nat_core.c calls the chains only until
// one has bound the flow).
func encodeVerdict(f family, v verdict) []expr.Any {
	switch v {
	case verdictReturn:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case verdictAccept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case verdictMasquerade:
		return []expr.Any{&expr.Masq{}}
	case verdictMasqueradeRandom:
		return []expr.Any{&expr.Masq{FullyRandom: true}}
	case verdictNoTrack:
		return []expr.Any{&expr.Notrack{}}
	case verdictDrop:
		return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	case verdictKeepSource:
		offset, length := addrField(f, true)
		protocol := uint32(unix.NFPROTO_IPV4)
		if f == ipv6 {
			protocol = unix.NFPROTO_IPV6
		}
		return []expr.Any{
			load(expr.PayloadBaseNetworkHeader, offset, length),
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: protocol, RegAddrMin: register},
		}
	}
	return nil
}

// decodedRule is a kernel rule of any program. Only the expressions that rule can express are
// decoded; the rest are counted.
type decodedRule struct {
	rule
	matchesMark    bool // matches the packet mark
	rewritesSource bool // rewrites the source address
	unknown        int  // number of expressions that rule cannot express
}

// exact reports whether rule describes the kernel's rule completely.
func (d decodedRule) exact() bool { return d.unknown == 0 && d.verdict != 0 }

// loadedField is the packet field that was loaded into a register.
type loadedField uint8

const (
	fieldOther loadedField = iota
	fieldSrc
	fieldDst
	fieldMark
	fieldProtocol
	fieldPort
)

// decode is the inverse of encode. It also accepts rules of other programs, and decodes their
// conditions as far as they are plain prefixes.
func decode(f family, exprs []expr.Any) decodedRule {
	var (
		d      decodedRule
		loaded loadedField
		masked []byte
		udp    bool
	)
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Meta:
			loaded, masked = metaField(e), nil
			d.matchesMark = d.matchesMark || loaded == fieldMark
		case *expr.Payload:
			loaded, masked = payloadField(f, e), nil
		case *expr.Bitwise:
			masked = e.Mask
			if len(bytes.Trim(e.Xor, "\x00")) > 0 {
				d.unknown++
			}
		case *expr.Cmp:
			if loaded == fieldProtocol && e.Op == expr.CmpOpEq &&
				bytes.Equal(e.Data, []byte{unix.IPPROTO_UDP}) {
				udp = true
			} else if !d.decodeCmp(f, loaded, masked, e) {
				d.unknown++
			}
		default:
			d.decodeVerdict(e, loaded)
		}
	}
	if udp != (d.udpPort != 0) {
		d.unknown++
	}
	return d
}

func metaField(e *expr.Meta) loadedField {
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

func payloadField(f family, e *expr.Payload) loadedField {
	srcAt, length := addrField(f, true)
	dstAt, _ := addrField(f, false)
	switch network := e.Base == expr.PayloadBaseNetworkHeader; {
	case network && e.Offset == srcAt && e.Len <= length:
		return fieldSrc
	case network && e.Offset == dstAt && e.Len <= length:
		return fieldDst
	case e.Base == expr.PayloadBaseTransportHeader &&
		e.Offset == udpPortOffset && e.Len == udpPortLen:
		return fieldPort
	}
	return fieldOther
}

// decodeCmp decodes one comparison. It reports false if rule cannot express it.
func (d *decodedRule) decodeCmp(f family, loaded loadedField, masked []byte, e *expr.Cmp) bool {
	equal := e.Op == expr.CmpOpEq
	switch loaded {
	case fieldSrc, fieldDst:
		m, ok := decodeAddr(f, masked, e)
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

// decodeAddr decodes a comparison of an address as a prefix. A comparison shorter than an address
// is a prefix too: nft loads only the leading bytes.
func decodeAddr(f family, masked []byte, e *expr.Cmp) (addrMatch, bool) {
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
	missing := make([]byte, int(length)-len(e.Data))
	addr, _ := netip.AddrFromSlice(append(bytes.Clone(e.Data), missing...))
	return addrMatch{prefix: netip.PrefixFrom(addr, n), not: e.Op == expr.CmpOpNeq}, true
}

// decodeVerdict decodes the expression that determines the verdict.
func (d *decodedRule) decodeVerdict(e expr.Any, loaded loadedField) {
	switch e := e.(type) {
	case *expr.Verdict:
		switch e.Kind {
		case expr.VerdictReturn:
			d.verdict = verdictReturn
		case expr.VerdictAccept:
			d.verdict = verdictAccept
		case expr.VerdictDrop:
			d.verdict = verdictDrop
		case expr.VerdictJump:
			d.verdict, d.to = verdictJump, e.Chain
		default:
			d.unknown++
		}
	case *expr.Masq:
		d.verdict, d.rewritesSource = verdictMasquerade, true
		if e.FullyRandom {
			d.verdict = verdictMasqueradeRandom
		}
		if e.Random || e.Persistent || e.ToPorts {
			d.unknown++
		}
	case *expr.NAT:
		d.rewritesSource = e.Type == expr.NATTypeSourceNAT
		plain := !e.Random && !e.FullyRandom && !e.Persistent && !e.Prefix && e.RegProtoMin == 0
		if d.rewritesSource && plain && loaded == fieldSrc {
			d.verdict = verdictKeepSource
		} else {
			d.unknown++
		}
	case *expr.Target: // iptables-nft uses it for targets without an nftables expression
		d.rewritesSource = rewritesSource(parsedRule{target: e.Name})
		d.unknown++
	case *expr.Notrack:
		d.verdict = verdictNoTrack
	default:
		d.unknown++
	}
}
