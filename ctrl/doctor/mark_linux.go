package doctor

import (
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
)

// tracePayload is the length of the payload of a marked echo or datagram in bytes. Other traffic
// hardly has it.
const tracePayload = 73

// traceProbe makes the packets of a trace recognisable: echoes and datagrams by random bytes in
// their payload, TCP segments by their addresses and ports, one of which is random.
type traceProbe struct {
	flow Flow
	mark []byte         // of echoes and datagrams
	size int            // of an echo or datagram with its IP header, in bytes
	from netip.AddrPort // of TCP; invalid if the source is not known
	to   netip.AddrPort
}

// newTraceProbe returns a probe of a flow. src is the source address, or invalid if the kernel
// chooses it.
func newTraceProbe(flow Flow, src netip.Addr) traceProbe {
	p := traceProbe{flow: flow, mark: make([]byte, 16), size: header4 + icmp + tracePayload,
		to: netip.AddrPortFrom(flow.Dst, max(flow.Port, probePort))}
	if flow.Dst.Is6() {
		p.size += header6 - header4
	}
	rand.Read(p.mark) // never fails
	if flow.Protocol != protocolTCP {
		return p
	}
	if !src.IsValid() {
		src = chosenSource(p.to)
	}
	if src.IsValid() {
		// From 20000 on, below the ports that the kernel chooses.
		port := 20000 + (uint16(p.mark[0])<<8|uint16(p.mark[1]))%10000
		p.from = netip.AddrPortFrom(src, port)
	}
	return p
}

// chosenSource returns the source address that the kernel chooses for a destination; invalid if it
// has no route.
func chosenSource(to netip.AddrPort) netip.Addr {
	c, err := net.Dial("udp", to.String()) // sends nothing
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// payload returns the payload of a datagram.
func (p traceProbe) payload() []byte {
	return append(slices.Clone(p.mark), make([]byte, tracePayload-len(p.mark))...)
}

// marked describes the packets and their answers, to a node or nil if none has the destination.
func (p traceProbe) marked(node *Node) Marked {
	m := Marked{Src: p.flow.Src, Dst: p.flow.Dst, Marks: [][]byte{p.mark}}
	if node != nil {
		m.Node = node.Name
	}
	header := header4
	if p.flow.Dst.Is6() {
		header = header6
	}
	switch p.flow.Protocol {
	case protocolTCP:
		// Linux has 20 bytes of options in a SYN, none in a RST.
		m.Lengths = []int{header + 40, header + 20}
		m.Marks = [][]byte{tcpMark(p.from, p.to), tcpMark(p.to, p.from)}
	case protocolUDP:
		m.Lengths = []int{p.size, p.size + header + icmp} // and an ICMP error with the datagram
	default:
		m.Lengths = []int{p.size}
	}
	return m
}

// tcpMark returns the addresses and ports as they follow each other in a segment without IP
// options.
func tcpMark(src, dst netip.AddrPort) []byte {
	b := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	return append(b, byte(src.Port()>>8), byte(src.Port()), byte(dst.Port()>>8), byte(dst.Port()))
}
