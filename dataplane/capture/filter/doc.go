// Package filter compiles capture filters in the language of tcpdump (pcap-filter(7)) and applies
// them to IP packets without a link layer.
//
// It has the primitives that make sense for such packets, with the meaning that libpcap gives them
// for LINKTYPE_RAW: [src|dst] host, net, port and portrange, the protocols, proto, less, greater,
// inbound, outbound, multicast, and comparisons such as tcp[tcpflags] & tcp-syn != 0. As in
// libpcap, "and" and "or" have the same precedence and associate to the left, and a packet that is
// too short for a comparison does not match, whatever the rest of the expression.
//
// Names of hosts are not resolved: the daemon must not wait for a name server.
package filter

import "fmt"

// Filter is a compiled expression. The zero value matches every packet. It is immutable.
type Filter struct {
	text  string
	match predicate // nil matches everything
}

// predicate reports whether a packet matches.
type predicate func(*packet) bool

// Parse compiles an expression. An empty one matches every packet.
func Parse(expression string) (*Filter, error) {
	tokens, err := scan(expression)
	if err != nil {
		return nil, fmt.Errorf("filter %q: %w", expression, err)
	}
	f := &Filter{text: expression}
	if len(tokens) == 1 { // only the end
		return f, nil
	}
	p := &parser{tokens: tokens}
	if f.match, err = p.parse(); err != nil {
		return nil, fmt.Errorf("filter %q: %w", expression, err)
	}
	return f, nil
}

// String returns the expression.
func (f *Filter) String() string { return f.text }

// Matcher applies a filter without allocating. It is for one goroutine at a time.
type Matcher struct {
	match  predicate
	packet packet
}

// Matcher returns a new matcher of the filter.
func (f *Filter) Matcher() *Matcher { return &Matcher{match: f.match} }

// Match reports whether the IP packet matches. outbound is the direction for the primitives of that
// name. Match does not keep pkt.
func (m *Matcher) Match(pkt []byte, outbound bool) bool {
	if m.match == nil {
		return true
	}
	m.packet = newPacket(pkt, outbound)
	matched := m.match(&m.packet) && !m.packet.short
	m.packet.bytes = nil
	return matched
}
