package netfilter

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftReader reads chains of nftables as traced rules. The tables of iptables-nft are among them.
type nftReader struct {
	family family
	conn   *nftables.Conn
}

// chainsAt returns the base chains of type filter that packets of the family traverse at a hook.
func (r nftReader) chainsAt(hooks ...*nftables.ChainHook) ([]*nftables.Chain, error) {
	var matching []*nftables.Chain
	for _, f := range []nftables.TableFamily{nftFamily(r.family), nftables.TableFamilyINet} {
		chains, err := r.conn.ListChainsOfTableFamily(f)
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			for _, hook := range hooks {
				if c.Hooknum != nil && *c.Hooknum == *hook && c.Type == nftables.ChainTypeFilter {
					matching = append(matching, c)
				}
			}
		}
	}
	return matching, nil
}

// traced returns a base chain for a trace.
func (r nftReader) traced(c *nftables.Chain) tracedChain {
	return tracedChain{
		name:           c.Name,
		dropsByDefault: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		rules: func(chain string) ([]filterRule, error) {
			kernel, err := r.conn.GetRules(c.Table, &nftables.Chain{Name: chain, Table: c.Table})
			if err != nil {
				return nil, err
			}
			var rules []filterRule
			for i, k := range kernel {
				more, err := r.decode(c.Table, k.Exprs)
				if err != nil {
					return nil, err
				}
				for j := range more {
					more[j].number = i + 1
				}
				rules = append(rules, more...)
			}
			return rules, nil
		},
	}
}

// ruleReader decodes one rule.
type ruleReader struct {
	nftReader
	table *nftables.Table
	rule  filterRule
	field tracedField
	mask  []byte
	value []byte // that was loaded last without a field
}

// tracedField is the packet field that was loaded into a register.
type tracedField uint8

const (
	tracedOther tracedField = iota
	tracedSrc
	tracedDst
	tracedProtocol
	tracedFamily
	tracedState
	tracedStatus
	tracedICMPType
	tracedPort
	tracedInDevice
	tracedOutDevice
)

// decode translates a rule of any program. A verdict map yields one rule per element.
func (r nftReader) decode(t *nftables.Table, exprs []expr.Any) ([]filterRule, error) {
	d := ruleReader{nftReader: r, table: t}
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Notrack:
			d.rule.tracking.untracks = true
		case *expr.Immediate:
			d.value = e.Data
		case *expr.Meta, *expr.Payload, *expr.Ct:
			if c, ok := e.(*expr.Ct); ok {
				d.setTracking(c)
			}
			d.field, d.mask = d.loads(e), nil
		case *expr.Bitwise:
			d.mask = e.Mask
			d.rule.unknown = d.rule.unknown || len(bytes.Trim(e.Xor, "\x00")) > 0
		case *expr.Cmp:
			d.compare(e)
		case *expr.Lookup:
			if e.IsDestRegSet {
				return d.verdictMap(e)
			}
			if err := d.lookup(e); err != nil {
				return nil, err
			}
		case *expr.Match:
			d.rule.match(e.Name, e.Info)
		case *expr.Reject:
			d.rule.action = actionDrop
		case *expr.Target:
			d.rule.action = targetAction(e.Name)
			if info, ok := e.Info.(*xt.Unknown); ok {
				d.rule.tracking = targetTracking(e.Name, *info)
			}
		case *expr.Verdict:
			d.verdict(e)
		default:
			d.rule.unknown = true
		}
	}
	return []filterRule{d.rule}, nil
}

// loads returns the field that an expression loads.
func (d *ruleReader) loads(e expr.Any) tracedField {
	switch e := e.(type) {
	case *expr.Meta:
		return metaFieldTraced(e)
	case *expr.Ct:
		switch {
		case !e.SourceRegister && e.Key == expr.CtKeySTATE:
			return tracedState
		case !e.SourceRegister && e.Key == expr.CtKeySTATUS:
			return tracedStatus
		}
	case *expr.Payload:
		const protocolOffset4, nextHeaderOffset6 = 9, 6 // RFC 791, RFC 8200
		network := e.Base == expr.PayloadBaseNetworkHeader
		switch payloadField(d.family, e) {
		case fieldSrc:
			return tracedSrc
		case fieldDst:
			return tracedDst
		}
		switch {
		case network && e.Len == 1 && d.family == ipv4 && e.Offset == protocolOffset4,
			network && e.Len == 1 && d.family == ipv6 && e.Offset == nextHeaderOffset6:
			return tracedProtocol
		case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 0 && e.Len == 1:
			return tracedICMPType
		case e.Base == expr.PayloadBaseTransportHeader && e.Offset == udpPortOffset &&
			e.Len == udpPortLen:
			return tracedPort
		}
	}
	return tracedOther
}

func metaFieldTraced(e *expr.Meta) tracedField {
	if e.SourceRegister {
		return tracedOther
	}
	switch e.Key {
	case expr.MetaKeyL4PROTO:
		return tracedProtocol
	case expr.MetaKeyNFPROTO:
		return tracedFamily
	case expr.MetaKeyIIFNAME:
		return tracedInDevice
	case expr.MetaKeyOIFNAME:
		return tracedOutDevice
	}
	return tracedOther
}

// compare adds the condition of a comparison.
func (d *ruleReader) compare(e *expr.Cmp) {
	equal := e.Op == expr.CmpOpEq
	r := &d.rule
	switch {
	case d.field == tracedSrc || d.field == tracedDst:
		m, ok := decodeAddr(d.family, d.mask, e)
		if d.field == tracedSrc {
			r.src = m
		} else {
			r.dst = m
		}
		r.unknown = r.unknown || !ok
	case d.field == tracedState && len(e.Data) == 4:
		d.compareState(e)
	case d.field == tracedStatus && e.Op == expr.CmpOpNeq && d.mask != nil:
		r.never = true // translated packets only
	case equal && d.field == tracedProtocol && len(e.Data) == 1:
		r.protocol = e.Data[0]
	case equal && d.field == tracedICMPType && len(e.Data) == 1:
		r.icmpTypes = []uint8{e.Data[0]}
	case equal && d.field == tracedFamily && len(e.Data) == 1:
		r.never = r.never || e.Data[0] != byte(nftFamily(d.family))
	case d.field == tracedPort && len(e.Data) == 2 && (equal || e.Op == expr.CmpOpNeq):
		port := binary.BigEndian.Uint16(e.Data)
		r.unknown = r.unknown || r.ports != nil
		r.ports = portsBut(portRange{port, port}, !equal)
	case (equal || e.Op == expr.CmpOpNeq) &&
		(d.field == tracedInDevice || d.field == tracedOutDevice):
		r.matchDevice(e.Data, d.field == tracedInDevice, !equal)
	default:
		r.unknown = true
	}
}

// compareState adds the condition of `ct state X` in the forms that nft writes.
func (d *ruleReader) compareState(e *expr.Cmp) {
	data := binaryutil.NativeEndian.Uint32(e.Data)
	switch {
	case d.mask == nil && e.Op == expr.CmpOpEq:
		d.rule.states = data
	case d.mask == nil && e.Op == expr.CmpOpNeq:
		d.rule.states = ^data
	case len(d.mask) == 4 && data == 0 && e.Op == expr.CmpOpNeq:
		d.rule.states = binaryutil.NativeEndian.Uint32(d.mask)
	case len(d.mask) == 4 && data == 0 && e.Op == expr.CmpOpEq:
		d.rule.states = ^binaryutil.NativeEndian.Uint32(d.mask)
	default:
		d.rule.unknown = true
	}
}

// lookup adds the condition that the field is in a set.
func (d *ruleReader) lookup(e *expr.Lookup) error {
	if e.Invert || !slices.Contains([]tracedField{tracedState, tracedICMPType, tracedPort}, d.field) {
		d.rule.unknown = true
		return nil
	}
	elements, err := d.elements(e)
	for _, el := range elements {
		switch {
		case d.field == tracedState && len(el.Key) == 4:
			d.rule.states |= binaryutil.NativeEndian.Uint32(el.Key)
		case d.field == tracedICMPType && len(el.Key) == 1:
			d.rule.icmpTypes = append(d.rule.icmpTypes, el.Key[0])
		case d.field == tracedPort && len(el.Key) == 2 && !el.IntervalEnd && el.KeyEnd == nil:
			port := binary.BigEndian.Uint16(el.Key)
			d.rule.ports = append(d.rule.ports, portRange{port, port})
		default:
			d.rule.unknown = true
		}
	}
	return err
}

func (d *ruleReader) elements(e *expr.Lookup) ([]nftables.SetElement, error) {
	return d.conn.GetSetElements(&nftables.Set{Table: d.table, Name: e.SetName, IsMap: e.IsDestRegSet})
}

// verdictMap returns one rule per element of a verdict map.
func (d *ruleReader) verdictMap(e *expr.Lookup) ([]filterRule, error) {
	elements, err := d.elements(e)
	if err != nil {
		return nil, err
	}
	var rules []filterRule
	for _, el := range elements {
		verdict, err := elementVerdict(el.Val)
		if err != nil {
			return nil, err
		}
		of := *d
		if d.field == tracedState && d.mask == nil && len(el.Key) == 4 {
			of.rule.states = binaryutil.NativeEndian.Uint32(el.Key)
		} else {
			of.rule.unknown = true
		}
		of.verdict(verdict)
		rules = append(rules, of.rule)
	}
	return rules, nil
}

// elementVerdict decodes the verdict of a map's element, which the library returns as attributes.
func elementVerdict(data []byte) (*expr.Verdict, error) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	v := &expr.Verdict{Kind: expr.VerdictContinue}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(int32(ad.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = ad.String()
		}
	}
	return v, ad.Err()
}

// setTracking adds the effect of `ct zone set`. The library does not decode the register that it
// reads, so one without a register to write to is it.
func (d *ruleReader) setTracking(e *expr.Ct) {
	if e.Key == expr.CtKeyZONE && e.Register == 0 && len(d.value) >= 2 {
		d.rule.tracking.zone = binaryutil.NativeEndian.Uint16(d.value)
	}
}

func (d *ruleReader) verdict(e *expr.Verdict) {
	d.rule.to = e.Chain
	switch e.Kind {
	case expr.VerdictAccept:
		d.rule.action = actionAccept
	case expr.VerdictDrop:
		d.rule.action = actionDrop
	case expr.VerdictReturn:
		d.rule.action = actionReturn
	case expr.VerdictJump:
		d.rule.action = actionJump
	case expr.VerdictGoto:
		d.rule.action = actionGoto
	}
}
