package capture

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Text describes the packet in one line, without time and comment. At the outer point, it describes
// the inner packet as well.
func (r *Record) Text() string {
	text, payload := describe(r.Bytes, r.Length)
	if r.Point == Outer && len(payload) > 0 && (payload[0]>>4 == 4 || payload[0]>>4 == 6) {
		inner, _ := describe(payload, len(payload))
		text += " | " + inner
	}
	return text
}

// describe describes an IP packet of a length, of which b is the beginning. payload is that of UDP
// or of IP in IP.
func describe(b []byte, length int) (text string, payload []byte) {
	first := layers.LayerTypeIPv4
	if len(b) > 0 && b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	network := p.NetworkLayer()
	if network == nil {
		return fmt.Sprintf("no IP packet, length %d", length), nil
	}
	flow := network.NetworkFlow()
	if ip, ok := network.(*layers.IPv4); ok && ip.FragOffset != 0 {
		return fmt.Sprintf("%s > %s: %s fragment at %d, length %d",
			flow.Src(), flow.Dst(), ip.Protocol, int(ip.FragOffset)*8, length), nil
	}
	src, dst := flow.Src().String(), flow.Dst().String()
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.TCP:
			return fmt.Sprintf("%s.%d > %s.%d: TCP [%s] seq %d ack %d win %d, length %d",
				src, l.SrcPort, dst, l.DstPort, tcpFlags(l), l.Seq, l.Ack, l.Window, length), nil
		case *layers.UDP:
			return fmt.Sprintf("%s.%d > %s.%d: UDP, length %d",
				src, l.SrcPort, dst, l.DstPort, length), l.Payload
		case *layers.ICMPv4:
			return fmt.Sprintf("%s > %s: ICMP %s%s, length %d",
				src, dst, l.TypeCode, echo(l.Contents), length), nil
		case *layers.ICMPv6:
			return fmt.Sprintf("%s > %s: ICMPv6 %s%s, length %d",
				src, dst, l.TypeCode, echo(append(l.Contents, l.Payload...)), length), nil
		}
	}
	return fmt.Sprintf("%s > %s: %s, length %d", src, dst, protocolName(network), length),
		network.LayerPayload()
}

// echo returns identifier and sequence number of an ICMP or ICMPv6 echo message.
func echo(b []byte) string {
	if len(b) < 8 || b[0] != 8 && b[0] != 0 && b[0] != 128 && b[0] != 129 {
		return ""
	}
	return fmt.Sprintf(" id %d seq %d", binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]))
}

func protocolName(network gopacket.NetworkLayer) string {
	switch ip := network.(type) {
	case *layers.IPv4:
		return ip.Protocol.String()
	case *layers.IPv6:
		return ip.NextHeader.String()
	}
	return network.LayerType().String()
}

// tcpFlags returns the flags as tcpdump prints them.
func tcpFlags(t *layers.TCP) string {
	var b strings.Builder
	for _, f := range []struct {
		set  bool
		name byte
	}{{t.SYN, 'S'}, {t.FIN, 'F'}, {t.RST, 'R'}, {t.PSH, 'P'}, {t.URG, 'U'}, {t.ECE, 'E'},
		{t.CWR, 'W'}, {t.ACK, '.'}} {
		if f.set {
			b.WriteByte(f.name)
		}
	}
	return b.String()
}
