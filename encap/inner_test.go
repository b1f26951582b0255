package encap

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

// packet4 builds an IPv4 packet with a valid header checksum.
func packet4(src, dst string, proto uint8, flags uint16, options, payload []byte) []byte {
	header := ipv4HeaderLen + len(options)
	b := make([]byte, header+len(payload))
	b[0] = 4<<4 | uint8(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], 0xbeef)
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9] = 63, proto
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	copy(b[20:], options)
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:header]))
	copy(b[header:], payload)
	return b
}

// packet6 builds an IPv6 packet. rest is everything after its header; next is the protocol that
// rest begins with.
func packet6(src, dst string, next uint8, rest []byte) []byte {
	b := make([]byte, ipv6HeaderLen, ipv6HeaderLen+len(rest))
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[6], b[7] = next, 63
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, rest...)
}

// slowSum returns the Internet checksum of b, not complemented, folding the carry after every word.
func slowSum(b []byte) uint16 {
	var s uint16
	for i := 0; i < len(b); i += 2 {
		w := uint16(b[i]) << 8
		if i+1 < len(b) {
			w |= uint16(b[i+1])
		}
		s += w
		if s < w {
			s++
		}
	}
	return s
}

func TestParseInner(t *testing.T) {
	v4 := packet4("10.5.1.2", "10.5.2.3", ProtoUDP, flagDF, nil, make([]byte, 12))
	v4[1] = 0xb9 // DSCP 46, ECN 1
	hop := []byte{ProtoUDP, 0, 1, 4, 0, 0, 0, 0}
	longDst := append([]byte{ProtoTCP, 1}, make([]byte, 14)...)
	fragFirst, fragLater := []byte{ProtoUDP, 0, 0, 1, 0, 0, 0, 7}, []byte{ProtoUDP, 0, 0, 8, 0, 0, 0, 7}
	withTOS6 := packet6("fd00::1", "fd00::2", ProtoTCP, make([]byte, 20))
	withTOS6[0], withTOS6[1] = 0x6b, 0x90

	for _, c := range []struct {
		name string
		pkt  []byte
		want Inner
	}{
		{"IPv4", v4, Inner{Len: 32, HeaderLen: 20, Version: 4, Proto: ProtoUDP, TOS: 0xb9, DF: true}},
		{"IPv4 options", packet4("10.5.1.2", "10.5.2.3", ProtoTCP, 0, make([]byte, 40), make([]byte, 20)),
			Inner{Len: 80, HeaderLen: 60, Version: 4, Proto: ProtoTCP}},
		{"IPv4 first fragment", packet4("10.5.1.2", "10.5.2.3", ProtoUDP, flagMF, nil, make([]byte, 8)),
			Inner{Len: 28, HeaderLen: 20, Version: 4, Proto: ProtoUDP}},
		{"IPv4 last fragment", packet4("10.5.1.2", "10.5.2.3", ProtoUDP, 1, nil, make([]byte, 8)),
			Inner{Len: 28, HeaderLen: 20, Version: 4, Proto: ProtoUDP, NonFirstFragment: true}},
		{"IPv4 bare header", packet4("10.5.1.2", "10.5.2.3", 99, 0, nil, nil),
			Inner{Len: 20, HeaderLen: 20, Version: 4, Proto: 99}},
		{"IPv6", withTOS6, Inner{Len: 60, HeaderLen: 40, Version: 6, Proto: ProtoTCP, TOS: 0xb9, DF: true}},
		{"IPv6 hop-by-hop", packet6("fd00::1", "fd00::2", extHopByHop, append(hop, make([]byte, 8)...)),
			Inner{Len: 56, HeaderLen: 48, Version: 6, Proto: ProtoUDP, DF: true}},
		{"IPv6 long destination options", packet6("fd00::1", "fd00::2", extDestination, longDst),
			Inner{Len: 56, HeaderLen: 56, Version: 6, Proto: ProtoTCP, DF: true}},
		{"IPv6 first fragment", packet6("fd00::1", "fd00::2", extFragment, append(fragFirst, make([]byte, 8)...)),
			Inner{Len: 56, HeaderLen: 48, Version: 6, Proto: ProtoUDP, DF: true}},
		{"IPv6 later fragment", packet6("fd00::1", "fd00::2", extFragment, append(fragLater, make([]byte, 8)...)),
			Inner{Len: 56, HeaderLen: 48, Version: 6, Proto: ProtoUDP, DF: true, NonFirstFragment: true}},
		{"IPv6 nothing behind", packet6("fd00::1", "fd00::2", 59, nil),
			Inner{Len: 40, HeaderLen: 40, Version: 6, Proto: 59, DF: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseInner(c.pkt)
			if err != nil {
				t.Fatal(err)
			}
			c.want.Src, c.want.Dst = netip.MustParseAddr("10.5.1.2"), netip.MustParseAddr("10.5.2.3")
			if c.want.Version == 6 {
				c.want.Src, c.want.Dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
			}
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestParseInnerErrors(t *testing.T) {
	v4 := packet4("10.5.1.2", "10.5.2.3", ProtoUDP, 0, nil, make([]byte, 12))
	v6 := packet6("fd00::1", "fd00::2", ProtoUDP, make([]byte, 12))
	change := func(b []byte, at int, to byte) []byte {
		b = append([]byte(nil), b...)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name string
		pkt  []byte
		want error
	}{
		{"nothing", nil, ErrTooShort},
		{"19 bytes", v4[:19], ErrTooShort},
		{"version 5", change(v4, 0, 0x55), ErrBadVersion},
		{"version 0", make([]byte, 40), ErrBadVersion},
		{"IPv4 header length 4 words", change(v4, 0, 0x44), ErrBadLength},
		{"IPv4 options beyond the end", change(v4, 0, 0x4f), ErrTooShort},
		{"IPv4 cut off", v4[:31], ErrBadLength},
		{"IPv4 with a tail", append(v4[:len(v4):len(v4)], 0), ErrBadLength},
		{"IPv4 length 0", change(change(v4, 3, 0), 2, 0), ErrBadLength},
		{"IPv6 39 bytes", v6[:39], ErrTooShort},
		{"IPv6 cut off", v6[:51], ErrBadLength},
		{"IPv6 with a tail", append(v6[:len(v6):len(v6)], 0), ErrBadLength},
		{"IPv6 extension cut off",
			packet6("fd00::1", "fd00::2", extHopByHop, []byte{17, 1, 0, 0, 0, 0, 0, 0}), ErrTooShort},
		{"IPv6 extension of 7 bytes", packet6("fd00::1", "fd00::2", extRouting, make([]byte, 7)), ErrTooShort},
		{"IPv6 fragment header cut off", packet6("fd00::1", "fd00::2", extFragment, make([]byte, 7)), ErrTooShort},
	} {
		if _, err := ParseInner(c.pkt); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestIsNDP(t *testing.T) {
	icmp := func(typ byte) []byte { return []byte{typ, 0, 0, 0, 0, 0, 0, 0} }
	later := append([]byte{ProtoICMPv6, 0, 0, 8, 0, 0, 0, 7}, icmp(135)...)
	for _, c := range []struct {
		name string
		pkt  []byte
		want bool
	}{
		{"before the range", packet6("fe80::1", "ff02::2", ProtoICMPv6, icmp(132)), false},
		{"router solicitation", packet6("fe80::1", "ff02::2", ProtoICMPv6, icmp(133)), true},
		{"redirect", packet6("fe80::1", "fe80::2", ProtoICMPv6, icmp(137)), true},
		{"behind the range", packet6("fe80::1", "fe80::2", ProtoICMPv6, icmp(138)), false},
		{"echo", packet6("fe80::1", "fe80::2", ProtoICMPv6, icmp(128)), false},
		{"no type", packet6("fe80::1", "fe80::2", ProtoICMPv6, nil), false},
		{"later fragment", packet6("fe80::1", "fe80::2", extFragment, later), false},
		{"protocol 58 over IPv4", packet4("10.0.0.1", "10.0.0.2", ProtoICMPv6, 0, nil, icmp(135)), false},
	} {
		in, err := ParseInner(c.pkt)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := in.IsNDP(c.pkt); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestIsMulticast(t *testing.T) {
	for dst, want := range map[string]bool{
		"224.0.0.1": true, "239.255.255.255": true, "255.255.255.255": true, "240.0.0.1": false, "10.5.0.255": false,
	} {
		in, err := ParseInner(packet4("10.5.1.2", dst, ProtoUDP, 0, nil, nil))
		if err != nil || in.IsMulticast() != want {
			t.Errorf("%s: got %v, %v", dst, in.IsMulticast(), err)
		}
	}
	for dst, want := range map[string]bool{"ff02::1": true, "fe80::1": false, "::ffff:255.255.255.255": false} {
		in, err := ParseInner(packet6("fd00::1", dst, ProtoUDP, nil))
		if err != nil || in.IsMulticast() != want {
			t.Errorf("%s: got %v, %v", dst, in.IsMulticast(), err)
		}
	}
}

func TestParseInnerAllocs(t *testing.T) {
	v4 := packet4("10.5.1.2", "10.5.2.3", ProtoUDP, 0, nil, make([]byte, 12))
	v6 := packet6("fd00::1", "fd00::2", extHopByHop, append([]byte{ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, make([]byte, 8)...))
	for _, pkt := range [][]byte{v4, v6, v6[:20]} {
		if n := testing.AllocsPerRun(100, func() { _, _ = ParseInner(pkt) }); n != 0 {
			t.Errorf("%d allocations", int(n))
		}
	}
}

// FuzzParseInner checks that offsets lie within the packet and that addresses are those of the
// packet.
func FuzzParseInner(f *testing.F) {
	f.Add(packet4("10.5.1.2", "10.5.2.3", ProtoUDP, flagMF, make([]byte, 4), make([]byte, 12)))
	f.Add(packet6("fd00::1", "fd00::2", extHopByHop, append([]byte{ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, make([]byte, 8)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := ParseInner(b)
		if err != nil {
			if err != ErrTooShort && err != ErrBadVersion && err != ErrBadLength {
				t.Errorf("unexpected error %v", err)
			}
			return
		}
		if in.Len != len(b) || in.HeaderLen < ipv4HeaderLen || in.HeaderLen > in.Len {
			t.Errorf("length %d, header %d of %d bytes", in.Len, in.HeaderLen, len(b))
		}
		if in.Version != b[0]>>4 {
			t.Errorf("%+v", in)
		}
		addrs := append(in.Src.AsSlice(), in.Dst.AsSlice()...)
		at := 12
		if in.Version == 6 {
			at = 8
		}
		if string(b[at:at+len(addrs)]) != string(addrs) {
			t.Errorf("addresses %v %v", in.Src, in.Dst)
		}
	})
}

func BenchmarkParseInner(b *testing.B) {
	pkt := packet4("10.5.1.2", "10.5.2.3", ProtoTCP, flagDF, nil, make([]byte, 1400))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseInner(pkt); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOverheads(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want int // want: the values of flannel and of kernel devices
	}{
		{"udp", OverheadUDP4, 28}, {"udp over IPv6", OverheadUDP6, 48}, {"vxlan", OverheadVXLAN4, 50},
		{"vxlan over IPv6", OverheadVXLAN6, 70}, {"ipip", OverheadIPIP, 20}, {"wireguard", OverheadWireGuard, 80},
		{"largest UDP payload", MaxUDPPayload4, 65507}, {"over IPv6", MaxUDPPayload6, 65527},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.name, c.got, c.want)
		}
	}
}
