package netfilter

import (
	"net/netip"
	"testing"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TestEncodeDecode: every rule that goes to the kernel reads back as itself.
func TestEncodeDecode(t *testing.T) {
	d := everything()
	plain := everything()
	plain.NoRandomPorts = true
	plain.NoTrack = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8285"), netip.MustParseAddrPort("[::]:8285")}
	for _, f := range families() {
		for _, r := range append(d.rules(f), plain.rules(f)...) {
			if r.verdict == jump {
				if e := encode(f, r); len(e) > 0 {
					t.Errorf("%s has %d expressions", r.text(), len(e))
				}
				continue
			}
			got := decode(f, encode(f, r))
			got.table, got.chain, got.comment = r.table, r.chain, r.comment
			if !got.exact() || got.rule != r {
				t.Errorf("%s\nread %+v\nwant %+v", r.text(), got, r)
			}
		}
	}
}

// Expressions as nft and iptables-nft write them, for IPv4.
func load(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}
func masked(bytes ...byte) expr.Any {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(bytes)), Mask: bytes,
		Xor: make([]byte, len(bytes))}
}
func equal(bytes ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: bytes}
}
func differ(bytes ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: bytes}
}

func TestDecodeOthers(t *testing.T) {
	prefix := func(s string) addrMatch { return is(netip.MustParsePrefix(s)) }
	ret := &expr.Verdict{Kind: expr.VerdictReturn}
	protocol := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: register}
	kube := binaryutil.NativeEndian.PutUint32(kubeProxyMark)
	port := &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: udpPortOffset,
		Len: udpPortLen}
	for _, tt := range []struct {
		name     string
		exprs    []expr.Any
		exact    bool
		want     rule // of an exact one; else only its addresses are looked at
		marked   bool
		rewrites bool
	}{
		{"short load is a prefix", []expr.Any{load(srcOffset4, 2), equal(10, 5), &expr.Counter{}, ret}, true,
			rule{src: prefix("10.5.0.0/16"), verdict: back}, false, false},
		{"short load under a mask", []expr.Any{load(dstOffset4, 2), masked(0xff, 0xf0), differ(172, 16), ret}, true,
			rule{dst: isNot(netip.MustParsePrefix("172.16.0.0/12")), verdict: back}, false, false},
		{"mask with holes", []expr.Any{load(srcOffset4, 4), masked(255, 0, 255, 0), equal(10, 0, 1, 0), ret}, false,
			rule{}, false, false},
		{"mask of another length", []expr.Any{load(srcOffset4, 4), masked(255, 255), equal(10, 0, 1, 0), ret}, false,
			rule{}, false, false},
		{"flipped bits",
			[]expr.Any{load(srcOffset4, 1), &expr.Bitwise{Mask: []byte{255}, Xor: []byte{1}}, equal(10), ret}, false,
			rule{src: prefix("10.0.0.0/8")}, false, false},
		{"too long", []expr.Any{load(srcOffset4, 4), equal(1, 2, 3, 4, 5), ret}, false, rule{}, false, false},
		{"order of addresses", []expr.Any{load(srcOffset4, 1), &expr.Cmp{Op: expr.CmpOpLt, Data: []byte{10}}, ret},
			false, rule{}, false, false},
		{"another header field", []expr.Any{load(8, 1), equal(64), ret}, false, rule{}, false, false},
		{"mark as a whole", []expr.Any{mark, equal(kube...), ret}, false, rule{}, true, false},
		{"mark not set", []expr.Any{mark, masked(kube...), differ(kube...), ret}, false, rule{}, true, false},
		{"mark zero", []expr.Any{mark, masked(0, 0, 0, 0), equal(0, 0, 0, 0), ret}, false, rule{}, true, false},
		{"mark is written", []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register}},
			false, rule{}, false, false},
		{"device",
			[]expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}, differ([]byte("docker0\x00")...),
				&expr.Masq{}}, false,
			rule{}, false, true},
		{"udp alone", []expr.Any{protocol, equal(unix.IPPROTO_UDP), ret}, false, rule{}, false, false},
		{"tcp", []expr.Any{protocol, equal(unix.IPPROTO_TCP), ret}, false, rule{}, false, false},
		{"port without protocol", []expr.Any{port, equal(1, 2), ret}, false, rule{}, false, false},
		{"port not equal", []expr.Any{protocol, equal(unix.IPPROTO_UDP), port, differ(1, 2), ret}, false, rule{},
			false, false},
		{"port under a mask", []expr.Any{protocol, equal(unix.IPPROTO_UDP), port, masked(255, 0), equal(1, 0), ret},
			false, rule{}, false, false},
		{"docker by iptables-nft",
			[]expr.Any{load(srcOffset4, 3), equal(172, 17, 0), &expr.Target{Name: "MASQUERADE"}}, false,
			rule{src: prefix("172.17.0.0/24")}, false, true},
		{"another target", []expr.Any{&expr.Target{Name: "LOG"}}, false, rule{}, false, false},
		{"masquerade to ports", []expr.Any{&expr.Masq{ToPorts: true}}, false, rule{}, false, true},
		{"source to a fixed address", []expr.Any{&expr.Immediate{Register: register, Data: []byte{1, 2, 3, 4}},
			&expr.NAT{Type: expr.NATTypeSourceNAT, RegAddrMin: register}}, false, rule{}, false, true},
		{"destination", []expr.Any{&expr.NAT{Type: expr.NATTypeDestNAT, RegAddrMin: register}}, false, rule{}, false, false},
		{"jump", []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "FLANNEL-FWD"}}, true,
			rule{verdict: jump, to: "FLANNEL-FWD"}, false, false},
		{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, false, rule{}, false, false},
		{"nothing", nil, false, rule{}, false, false},
	} {
		d := decode(ipv4, tt.exprs)
		if d.exact() != tt.exact || d.marked != tt.marked || d.rewrites != tt.rewrites {
			t.Errorf("%s: exact %v, marked %v, rewrites %v", tt.name, d.exact(), d.marked, d.rewrites)
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

// TestNFTFit is what is left of the rules on a kernel that cannot do all of it.
func TestNFTFit(t *testing.T) {
	n := &nft{plainPorts: map[family]bool{ipv4: true}, noTrackErr: map[family]error{ipv6: unix.EOPNOTSUPP}}
	plain := everything()
	plain.NoRandomPorts = true
	if got, want := saved(n.fit(ipv4, everything().rules(ipv4))), saved(plain.rules(ipv4)); got != want {
		t.Errorf("without random ports:%s\nwant%s", got, want)
	}
	tracked := everything()
	tracked.NoTrack = nil
	if got, want := saved(n.fit(ipv6, everything().rules(ipv6))), saved(tracked.rules(ipv6)); got != want {
		t.Errorf("without notrack:%s\nwant%s", got, want)
	}
}
