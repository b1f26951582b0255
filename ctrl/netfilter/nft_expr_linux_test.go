package netfilter

import (
	"net/netip"
	"testing"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TestEncodeDecode checks that every rule survives a round trip.
func TestEncodeDecode(t *testing.T) {
	d := allRules()
	plain := allRules()
	plain.NoRandomPorts = true
	plain.NoTrack = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8285"), netip.MustParseAddrPort("[::]:8285")}
	for _, f := range families() {
		for _, r := range append(d.rules(f), plain.rules(f)...) {
			if r.verdict == verdictJump {
				if e := encode(f, r); len(e) > 0 {
					t.Errorf("%s has %d expressions", r.spec(), len(e))
				}
				continue
			}
			got := decode(f, encode(f, r))
			got.table, got.chain, got.comment = r.table, r.chain, r.comment
			if !got.exact() || got.rule != r {
				t.Errorf("%s\ndecoded %+v\nwant %+v", r.spec(), got, r)
			}
		}
	}
}

// The functions below return expressions as nft and iptables-nft write them for IPv4.

func loadIP(offset, length uint32) expr.Any {
	return load(expr.PayloadBaseNetworkHeader, offset, length)
}
func maskWith(bytes ...byte) expr.Any { return mask(bytes) }
func equal(bytes ...byte) expr.Any    { return compare(expr.CmpOpEq, bytes) }
func notEqual(bytes ...byte) expr.Any { return compare(expr.CmpOpNeq, bytes) }

func TestDecodeForeign(t *testing.T) {
	prefix := func(s string) addrMatch { return is(netip.MustParsePrefix(s)) }
	ret := &expr.Verdict{Kind: expr.VerdictReturn}
	protocol := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: register}
	kube := binaryutil.NativeEndian.PutUint32(kubeProxyMark)
	port := load(expr.PayloadBaseTransportHeader, udpPortOffset, udpPortLen)
	for _, tt := range []struct {
		name     string
		exprs    []expr.Any
		exact    bool
		want     rule // if not exact, only its addresses are compared
		marked   bool
		rewrites bool
	}{
		{"short load is a prefix", []expr.Any{loadIP(srcOffset4, 2), equal(10, 5), &expr.Counter{}, ret}, true,
			rule{src: prefix("10.5.0.0/16"), verdict: verdictReturn}, false, false},
		{"short load under a mask",
			[]expr.Any{loadIP(dstOffset4, 2), maskWith(0xff, 0xf0), notEqual(172, 16), ret}, true,
			rule{dst: isNot(netip.MustParsePrefix("172.16.0.0/12")), verdict: verdictReturn}, false, false},
		{"mask with holes", []expr.Any{loadIP(srcOffset4, 4), maskWith(255, 0, 255, 0), equal(10, 0, 1, 0), ret}, false,
			rule{}, false, false},
		{"mask of another length",
			[]expr.Any{loadIP(srcOffset4, 4), maskWith(255, 255), equal(10, 0, 1, 0), ret}, false,
			rule{}, false, false},
		{"flipped bits",
			[]expr.Any{loadIP(srcOffset4, 1), &expr.Bitwise{Mask: []byte{255}, Xor: []byte{1}}, equal(10), ret}, false,
			rule{src: prefix("10.0.0.0/8")}, false, false},
		{"too long", []expr.Any{loadIP(srcOffset4, 4), equal(1, 2, 3, 4, 5), ret}, false, rule{}, false, false},
		{"order of addresses", []expr.Any{loadIP(srcOffset4, 1), &expr.Cmp{Op: expr.CmpOpLt, Data: []byte{10}}, ret},
			false, rule{}, false, false},
		{"another header field", []expr.Any{loadIP(8, 1), equal(64), ret}, false, rule{}, false, false},
		{"mark as a whole", []expr.Any{mark, equal(kube...), ret}, false, rule{}, true, false},
		{"mark not set", []expr.Any{mark, maskWith(kube...), notEqual(kube...), ret}, false, rule{}, true, false},
		{"mark zero", []expr.Any{mark, maskWith(0, 0, 0, 0), equal(0, 0, 0, 0), ret}, false, rule{}, true, false},
		{"mark is written", []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register}},
			false, rule{}, false, false},
		{"device",
			[]expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}, notEqual([]byte("docker0\x00")...),
				&expr.Masq{}}, false,
			rule{}, false, true},
		{"udp alone", []expr.Any{protocol, equal(unix.IPPROTO_UDP), ret}, false, rule{}, false, false},
		{"tcp", []expr.Any{protocol, equal(unix.IPPROTO_TCP), ret}, false, rule{}, false, false},
		{"port without protocol", []expr.Any{port, equal(1, 2), ret}, false, rule{}, false, false},
		{"port not equal", []expr.Any{protocol, equal(unix.IPPROTO_UDP), port, notEqual(1, 2), ret}, false, rule{},
			false, false},
		{"port under a mask", []expr.Any{protocol, equal(unix.IPPROTO_UDP), port, maskWith(255, 0), equal(1, 0), ret},
			false, rule{}, false, false},
		{"docker by iptables-nft",
			[]expr.Any{loadIP(srcOffset4, 3), equal(172, 17, 0), &expr.Target{Name: "MASQUERADE"}}, false,
			rule{src: prefix("172.17.0.0/24")}, false, true},
		{"another target", []expr.Any{&expr.Target{Name: "LOG"}}, false, rule{}, false, false},
		{"masquerade to ports", []expr.Any{&expr.Masq{ToPorts: true}}, false, rule{}, false, true},
		{"source to a fixed address", []expr.Any{&expr.Immediate{Register: register, Data: []byte{1, 2, 3, 4}},
			&expr.NAT{Type: expr.NATTypeSourceNAT, RegAddrMin: register}}, false, rule{}, false, true},
		{"destination",
			[]expr.Any{&expr.NAT{Type: expr.NATTypeDestNAT, RegAddrMin: register}}, false, rule{}, false, false},
		{"jump", []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "FLANNEL-FWD"}}, true,
			rule{verdict: verdictJump, to: "FLANNEL-FWD"}, false, false},
		{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, true, rule{verdict: verdictDrop}, false, false},
		{"nothing", nil, false, rule{}, false, false},
	} {
		d := decode(ipv4, tt.exprs)
		if d.exact() != tt.exact || d.matchesMark != tt.marked || d.rewritesSource != tt.rewrites {
			t.Errorf("%s: exact %v, matchesMark %v, rewritesSource %v",
				tt.name, d.exact(), d.matchesMark, d.rewritesSource)
		}
		if tt.exact && d.rule != tt.want || d.src != tt.want.src && tt.want.src.prefix.IsValid() {
			t.Errorf("%s: %+v", tt.name, d.rule)
		}
	}
}

func TestPrefixMask(t *testing.T) {
	for n := range 33 {
		m := prefixMask(n, 4)
		want := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), n).Masked().Addr().As4()
		if [4]byte(m) != want {
			t.Errorf("/%d: %v", n, m)
		}
	}
}

// TestNFTDegrade checks the rules for a kernel without the optional features.
func TestNFTDegrade(t *testing.T) {
	n := &nftApplier{noRandomPorts: map[family]bool{ipv4: true},
		unavailable: map[family]optionalTables{ipv6: {tableRaw: unix.EOPNOTSUPP}}}
	plain := allRules()
	plain.NoRandomPorts = true
	if got, want := saveText(n.degrade(ipv4, allRules().rules(ipv4))), saveText(plain.rules(ipv4)); got != want {
		t.Errorf("without random ports:%s\nwant%s", got, want)
	}
	tracked := allRules()
	tracked.NoTrack = nil
	if got, want := saveText(n.degrade(ipv6, allRules().rules(ipv6))), saveText(tracked.rules(ipv6)); got != want {
		t.Errorf("without notrack:%s\nwant%s", got, want)
	}
}
