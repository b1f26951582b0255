package encap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
)

func mustParse(t *testing.T, pkt []byte) *Inner {
	t.Helper()
	in, err := ParseInner(pkt)
	if err != nil {
		t.Fatal(err)
	}
	return &in
}

// echo returns an 8-byte ICMP message of the given type, such as an echo request.
func echo(typ byte) []byte { return []byte{typ, 0, 0, 0, 0, 7, 0, 1} }

func TestUnreachableGolden(t *testing.T) {
	pkt := packet4("10.5.1.2", "10.5.9.9", ProtoICMP, flagDF, nil, echo(8))
	got := hex.EncodeToString(AppendUnreachable(nil, pkt, mustParse(t, pkt)))
	want := "45c00038" + "00004000" + "40011bf1" + "0a050909" + "0a050102" + // IPv4, DF, TTL 64, from the destination
		"0300f4f7" + "00000000" + // net unreachable
		"4500001c" + "beef4000" + "3f015edd" + "0a050102" + "0a050909" + "0800000000070001"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestUnreachableGolden6 quotes an odd number of bytes and appends to a buffer that was used
// before.
func TestUnreachableGolden6(t *testing.T) {
	pkt := packet6("fd00::1", "fd00::2", ProtoUDP, []byte{0x13, 0x88, 0x13, 0x89, 0, 9, 0xbe, 0xef, 0x5a})
	used := bytes.Repeat([]byte{0xaa}, MaxICMP)
	got := hex.EncodeToString(AppendUnreachable(used[:0], pkt, mustParse(t, pkt)))
	addrs := "fd000000000000000000000000000001" + "fd000000000000000000000000000002"
	want := "6c000000" + "00393a40" + addrs[32:] + addrs[:32] + // hop limit 64, from the destination
		"01005930" + "00000000" + // no route
		hex.EncodeToString(pkt)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// verify4 checks the length and, by slowSum, the checksums of an ICMP packet over IPv4.
func verify4(t *testing.T, msg []byte) {
	t.Helper()
	if int(binary.BigEndian.Uint16(msg[2:])) != len(msg) {
		t.Errorf("length field %d of %d bytes", binary.BigEndian.Uint16(msg[2:]), len(msg))
	}
	if slowSum(msg[:20]) != 0xffff || slowSum(msg[20:]) != 0xffff {
		t.Errorf("wrong checksum in %x", msg)
	}
}

// verify6 is verify4 for IPv6. It builds the pseudo-header byte by byte.
func verify6(t *testing.T, msg []byte) {
	t.Helper()
	if int(binary.BigEndian.Uint16(msg[4:]))+40 != len(msg) {
		t.Errorf("length field %d of %d bytes", binary.BigEndian.Uint16(msg[4:]), len(msg))
	}
	pseudo := append([]byte(nil), msg[8:40]...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(msg)-40))
	pseudo = append(pseudo, 0, 0, 0, ProtoICMPv6)
	if slowSum(append(pseudo, msg[40:]...)) != 0xffff {
		t.Errorf("wrong checksum in %x", msg)
	}
}

func TestTooBig(t *testing.T) {
	v4 := packet4("10.5.1.2", "10.5.2.2", ProtoTCP, flagDF, nil, make([]byte, 1400))
	msg := AppendTooBig(nil, v4, mustParse(t, v4), 1372)
	verify4(t, msg)
	if msg[20] != 3 || msg[21] != 4 || binary.BigEndian.Uint32(msg[24:]) != 1372 {
		t.Errorf("type %d code %d rest %x", msg[20], msg[21], msg[24:28])
	}
	if len(msg) != 576 || !bytes.Equal(msg[28:], v4[:548]) {
		t.Errorf("%d bytes, quotes %x...", len(msg), msg[28:60])
	}

	v6 := packet6("fd00::1", "fd00:2::2", ProtoTCP, make([]byte, 1400))
	msg = AppendTooBig([]byte("before"), v6, mustParse(t, v6), 1352)
	if string(msg[:6]) != "before" {
		t.Fatalf("bytes before the message overwritten: %q", msg[:6])
	}
	msg = msg[6:]
	verify6(t, msg)
	if msg[40] != 2 || msg[41] != 0 || binary.BigEndian.Uint32(msg[44:]) != 1352 {
		t.Errorf("type %d code %d rest %x", msg[40], msg[41], msg[44:48])
	}
	if len(msg) != 1280 || !bytes.Equal(msg[48:], v6[:1232]) {
		t.Errorf("%d bytes", len(msg))
	}
	src, dst := netip.AddrFrom16([16]byte(msg[8:24])), netip.AddrFrom16([16]byte(msg[24:40]))
	if src != netip.MustParseAddr("fd00:2::2") || dst != netip.MustParseAddr("fd00::1") {
		t.Errorf("from %v to %v", src, dst)
	}
}

// TestTooBigMTULimits checks the minimum of 1280 bytes in IPv6 and the 16-bit field in IPv4.
func TestTooBigMTULimits(t *testing.T) {
	v4, v6 := packet4("10.5.1.2", "10.5.2.2", ProtoUDP, flagDF, nil, nil), packet6("fd00::1", "fd00::2", ProtoUDP, nil)
	for _, c := range []struct {
		pkt       []byte
		at        int
		mtu, want uint32
	}{
		{v6, 44, 1252, 1280}, {v6, 44, 1281, 1281}, {v6, 44, 70000, 70000},
		{v4, 24, 1252, 1252}, {v4, 24, 70000, 65535},
	} {
		msg := AppendTooBig(nil, c.pkt, mustParse(t, c.pkt), int(c.mtu))
		if got := binary.BigEndian.Uint32(msg[c.at:]); got != c.want {
			t.Errorf("IPv%d, %d bytes: MTU field %d, want %d", c.pkt[0]>>4, c.mtu, got, c.want)
		}
	}
}

// TestShortPacketQuoted checks that a packet with less than 8 bytes after its header is quoted
// whole.
func TestShortPacketQuoted(t *testing.T) {
	for n := range 9 {
		payload := bytes.Repeat([]byte{0x5a}, n)
		backing := append(packet4("10.5.1.2", "10.5.9.9", ProtoUDP, 0, nil, payload), 0xaa, 0xbb, 0xcc)
		pkt := backing[:20+n]
		msg := AppendUnreachable(nil, pkt, mustParse(t, pkt))
		verify4(t, msg)
		if !bytes.Equal(msg[28:], pkt) {
			t.Errorf("%d bytes after the header: quotes %x of %x", n, msg[28:], pkt)
		}
	}
}

func TestICMPNotAllowed(t *testing.T) {
	type testCase struct {
		name string
		pkt  []byte
		want bool
	}
	var cases []testCase
	add := func(want bool, name string, pkt []byte) { cases = append(cases, testCase{name, pkt, want}) }

	for typ, want := range map[byte]bool{
		0: true, 3: false, 4: false, 5: false, 8: true, 11: false, 12: false, 13: true, 41: false,
	} {
		add(want, "ICMP type", packet4("10.5.1.2", "10.5.9.9", ProtoICMP, 0, nil, echo(typ)))
	}
	for typ, want := range map[byte]bool{
		1: false, 2: false, 3: false, 4: false, 127: false, 128: true, 129: true, 137: false, 143: true,
	} {
		add(want, "ICMPv6 type", packet6("fd00::1", "fd00::2", ProtoICMPv6, echo(typ)))
	}
	add(false, "ICMP without a type", packet4("10.5.1.2", "10.5.9.9", ProtoICMP, 0, nil, nil))
	add(false, "ICMPv6 without a type", packet6("fd00::1", "fd00::2", ProtoICMPv6, nil))
	add(false, "ICMPv6 error behind an extension header",
		packet6("fd00::1", "fd00::2", extHopByHop, append([]byte{ProtoICMPv6, 0, 1, 4, 0, 0, 0, 0}, echo(1)...)))
	add(true, "ICMPv6 number over IPv4", packet4("10.5.1.2", "10.5.9.9", ProtoICMPv6, 0, nil, echo(1)))
	add(true, "first fragment", packet4("10.5.1.2", "10.5.9.9", ProtoUDP, flagMF, nil, make([]byte, 8)))
	add(false, "later fragment", packet4("10.5.1.2", "10.5.9.9", ProtoUDP, 1, nil, make([]byte, 8)))
	add(false, "later fragment", packet6("fd00::1", "fd00::2", extFragment, []byte{ProtoUDP, 0, 0, 8, 0, 0, 0, 7}))
	for src, want := range map[string]bool{
		"0.0.0.0": false, "0.1.2.3": false, "127.0.0.1": false, "224.0.0.5": false, "239.1.1.1": false,
		"240.0.0.1":       false,
		"255.255.255.255": false, "1.0.0.0": true, "10.5.9.9": false, // the last is the destination
	} {
		add(want, "from "+src, packet4(src, "10.5.9.9", ProtoUDP, 0, nil, make([]byte, 8)))
	}
	for src, want := range map[string]bool{"::": false, "::1": false, "ff02::1": false, "fe80::1": true} {
		add(want, "from "+src, packet6(src, "fd00::9", ProtoUDP, make([]byte, 8)))
	}
	for _, dst := range []string{"224.0.0.1", "255.255.255.255", "0.0.0.0"} {
		add(false, "to "+dst, packet4("10.5.1.2", dst, ProtoUDP, 0, nil, make([]byte, 8)))
	}
	add(false, "to a group", packet6("fd00::1", "ff02::1", ProtoUDP, make([]byte, 8)))

	for _, c := range cases {
		in := mustParse(t, c.pkt)
		if got := len(AppendUnreachable(nil, c.pkt, in)) > 0; got != c.want {
			t.Errorf("%s (%x): AppendUnreachable appended: %v", c.name, c.pkt, got)
		}
		if got := len(AppendTooBig(nil, c.pkt, in, 1300)) > 0; got != c.want {
			t.Errorf("%s (%x): AppendTooBig appended: %v", c.name, c.pkt, got)
		}
	}
}

func TestICMPAllocs(t *testing.T) {
	v4 := packet4("10.5.1.2", "10.5.2.2", ProtoTCP, flagDF, nil, make([]byte, 1400))
	v6 := packet6("fd00::1", "fd00::2", ProtoTCP, make([]byte, 1400))
	in4, in6 := mustParse(t, v4), mustParse(t, v6)
	room := make([]byte, 0, MaxICMP)
	if n := testing.AllocsPerRun(100, func() {
		AppendTooBig(room, v4, in4, 1300)
		AppendUnreachable(room, v6, in6)
	}); n != 0 {
		t.Errorf("%d allocations", int(n))
	}
}

// FuzzICMP checks that every ICMP error is well formed, addressed to the sender, and at most
// MaxICMP bytes.
func FuzzICMP(f *testing.F) {
	f.Add(packet4("10.5.1.2", "10.5.9.9", ProtoUDP, 0, make([]byte, 40), make([]byte, 3)), 1300)
	f.Add(packet6("fd00::1", "fd00::2", ProtoTCP, make([]byte, 1400)), 1280)
	f.Fuzz(func(t *testing.T, pkt []byte, mtu int) {
		in, err := ParseInner(pkt)
		if err != nil {
			return
		}
		for _, msg := range [][]byte{AppendUnreachable(nil, pkt, &in), AppendTooBig(nil, pkt, &in, mtu)} {
			if len(msg) == 0 {
				continue
			}
			if len(msg) > MaxICMP {
				t.Errorf("%d bytes", len(msg))
			}
			back := mustParse(t, msg)
			if back.Dst != in.Src || back.Src != in.Dst || back.Version != in.Version {
				t.Errorf("error %v -> %v in response to %v -> %v", back.Src, back.Dst, in.Src, in.Dst)
			}
			if in.Version == 4 {
				verify4(t, msg)
			} else {
				verify6(t, msg)
			}
			// An error in response to an error would loop.
			if len(AppendUnreachable(nil, msg, back)) != 0 {
				t.Error("ICMP error sent in response to an ICMP error")
			}
		}
	})
}
