package filter

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// qualifiers precede the value of a primitive, as in "tcp src port".
type qualifiers struct {
	proto string // "" for any
	ends  ends
	kind  string // host, net, port, portrange, proto
}

// ends says which end of a packet must match.
type ends uint8

const (
	sourceOrDestination ends = iota
	sourceAndDestination
	sourceOnly
	destinationOnly
)

// of returns a predicate that applies one for a single end to the ends.
func (e ends) of(match func(*packet, end) bool) predicate {
	switch e {
	case sourceOnly:
		return func(p *packet) bool { return match(p, endSource) }
	case destinationOnly:
		return func(p *packet) bool { return match(p, endDestination) }
	case sourceAndDestination:
		return func(p *packet) bool { return match(p, endSource) && match(p, endDestination) }
	}
	return func(p *packet) bool { return match(p, endSource) || match(p, endDestination) }
}

// protocol returns the predicate for a protocol name, and false if there is none of the name.
func protocol(name string) (predicate, bool) {
	switch name {
	case "ip":
		return func(p *packet) bool { return p.version == 4 }, true
	case "ip6":
		return func(p *packet) bool { return p.version == 6 }, true
	case "icmp":
		return func(p *packet) bool { return p.version == 4 && p.proto == protoICMP }, true
	case "icmp6":
		return func(p *packet) bool { return p.version == 6 && p.isProto(protoICMPv6) }, true
	case "tcp", "udp", "sctp":
		n := protocolNumber(name)
		return func(p *packet) bool { return p.isProto(n) }, true
	case "arp", "rarp":
		return constant(false), true // there is no link layer
	}
	return nil, false
}

// protocolNumber returns the number of a protocol that has ports, or 0.
func protocolNumber(name string) uint8 {
	switch name {
	case "tcp":
		return protoTCP
	case "udp":
		return protoUDP
	case "sctp":
		return protoSCTP
	}
	return 0
}

// primitive parses one primitive.
func (p *parser) primitive() (predicate, error) {
	switch t := p.peek(); {
	case t.text == "":
		return nil, errors.New("unexpected end")
	case p.accept("less"):
		n, err := p.number()
		return func(p *packet) bool { return len(p.bytes) <= n }, err
	case p.accept("greater"):
		n, err := p.number()
		return func(p *packet) bool { return len(p.bytes) >= n }, err
	case p.accept("inbound"):
		return func(p *packet) bool { return !p.outbound }, nil
	case p.accept("outbound"):
		return func(p *packet) bool { return p.outbound }, nil
	}
	q, some := p.qualifiers()
	switch {
	case p.accept("multicast"):
		return multicast(q)
	case !some:
		q = p.last
	case q.kind == "" && q.ends == sourceOrDestination:
		if match, ok := protocol(q.proto); ok && !p.atValue() {
			p.last = q
			return match, nil
		}
	}
	if q.kind == "" {
		q.kind = "host"
	}
	p.last = q
	return p.value(q)
}

// atValue reports whether the next token can be the value of a primitive, as in "ip 10.0.0.1".
func (p *parser) atValue() bool {
	switch t := p.peek(); t.text {
	case "", ")", "and", "or", "&&", "||":
		return false
	}
	return true
}

// qualifiers parses the qualifiers of a primitive and reports whether there are any.
func (p *parser) qualifiers() (q qualifiers, some bool) {
	start := p.at
	if t := p.peek(); !t.escaped {
		if _, ok := protocol(t.text); ok {
			q.proto = p.next().text
		}
	}
	q.ends = p.ends()
	for _, kind := range []string{"host", "net", "portrange", "port", "proto"} {
		if p.accept(kind) {
			q.kind = kind
			break
		}
	}
	return q, p.at > start
}

func (p *parser) ends() ends {
	first := p.peek().text
	if !p.accept("src", "dst") {
		return sourceOrDestination
	}
	start := p.at
	switch {
	case p.accept("or") && p.peek().text != first && p.accept("src", "dst"):
		return sourceOrDestination
	case p.rewind(start) && p.accept("and") && p.peek().text != first && p.accept("src", "dst"):
		return sourceAndDestination
	}
	p.rewind(start)
	if first == "src" {
		return sourceOnly
	}
	return destinationOnly
}

func multicast(q qualifiers) (predicate, error) {
	v4 := func(p *packet) bool { return p.version == 4 && p.bytes[16] >= 224 }
	v6 := func(p *packet) bool { return p.version == 6 && p.bytes[24] == 0xff }
	switch q {
	case qualifiers{proto: "ip"}:
		return v4, nil
	case qualifiers{proto: "ip6"}:
		return v6, nil
	}
	return nil, errors.New("want ip multicast or ip6 multicast")
}

// value parses the value of a primitive with qualifiers.
func (p *parser) value(q qualifiers) (predicate, error) {
	t := p.next()
	if t.text == "" || strings.Contains("()!=<>", t.text) {
		return nil, fmt.Errorf("want a value after %q, got %q", q.kind, t.text)
	}
	switch q.kind {
	case "proto":
		return protoValue(q, t)
	case "port", "portrange":
		return portValue(q, t.text)
	case "net":
		return p.netValue(q, t.text)
	}
	addr, err := netip.ParseAddr(t.text)
	if err != nil {
		return nil, fmt.Errorf("%q is neither a keyword nor an IP address", t.text)
	}
	return prefixPredicate(q, netip.PrefixFrom(addr, addr.BitLen()))
}

// protoValue returns the predicate of "proto N" and its variants.
func protoValue(q qualifiers, t token) (predicate, error) {
	var match predicate
	if n, err := strconv.ParseUint(t.text, 0, 8); err == nil {
		match = func(p *packet) bool { return p.isProto(uint8(n)) }
	} else if n := protocolNumber(t.text); n != 0 {
		match = func(p *packet) bool { return p.isProto(n) }
	} else if m, ok := protocol(t.text); ok && strings.HasPrefix(t.text, "icmp") {
		match = m
	} else {
		return nil, fmt.Errorf("unknown protocol %q", t.text)
	}
	switch q.proto {
	case "":
		return match, nil
	case "ip", "ip6":
		family, _ := protocol(q.proto)
		return both(family, match), nil
	}
	return nil, fmt.Errorf("%s proto has no meaning: want ip or ip6", q.proto)
}

// portValue returns the predicate of "port N" or "portrange N-M".
func portValue(q qualifiers, text string) (predicate, error) {
	number := protocolNumber(q.proto)
	if q.proto != "" && number == 0 && q.proto != "ip" && q.proto != "ip6" {
		return nil, fmt.Errorf("%s has no ports", q.proto)
	}
	from, to := text, text
	if q.kind == "portrange" {
		var ok bool
		if from, to, ok = strings.Cut(text, "-"); !ok {
			return nil, fmt.Errorf("want a range of ports such as 80-90, got %q", text)
		}
	}
	low, err := lookUpPort(from)
	if err != nil {
		return nil, err
	}
	high, err := lookUpPort(to)
	if err != nil {
		return nil, err
	}
	if low > high {
		low, high = high, low
	}
	match := q.ends.of(func(p *packet, e end) bool {
		if !p.hasPorts(number) {
			return false
		}
		port := p.port(e)
		return low <= port && port <= high
	})
	if q.proto == "ip" || q.proto == "ip6" {
		family, _ := protocol(q.proto)
		match = both(family, match)
	}
	return match, nil
}

// lookUpPort returns the number of a port, or that of a service by the system's list.
func lookUpPort(text string) (uint16, error) {
	if n, err := strconv.ParseUint(text, 0, 16); err == nil {
		return uint16(n), nil
	}
	for _, network := range []string{"tcp", "udp"} {
		if n, err := net.LookupPort(network, text); err == nil && text != "" {
			return uint16(n), nil
		}
	}
	return 0, fmt.Errorf("invalid port %q: want 0 to 65535 or the name of a service", text)
}

// netValue parses a network: with a prefix length, with a mask, or as leading octets ("10.5").
func (p *parser) netValue(q qualifiers, text string) (predicate, error) {
	octets := strings.Count(text, ".") + 1
	if !strings.Contains(text, ":") {
		text += strings.Repeat(".0", max(0, 4-octets))
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, fmt.Errorf("invalid network %q", text)
	}
	bits := addr.BitLen()
	if addr.Is4() {
		bits = min(bits, 8*octets)
	}
	switch {
	case p.accept("/"):
		if bits, err = p.number(); err == nil && bits > addr.BitLen() {
			err = fmt.Errorf("invalid prefix length %d of %s", bits, addr)
		}
	case p.accept("mask"):
		bits, err = p.mask()
	}
	if err != nil {
		return nil, err
	}
	prefix := netip.PrefixFrom(addr, bits)
	if prefix.Masked().Addr() != addr {
		return nil, fmt.Errorf("network %s has bits beyond its prefix: want %s",
			prefix, prefix.Masked())
	}
	return prefixPredicate(q, prefix)
}

// mask parses an IPv4 mask and returns the length of the prefix.
func (p *parser) mask() (int, error) {
	text := p.next().text
	addr, err := netip.ParseAddr(text)
	if err == nil && addr.Is4() {
		if ones, size := net.IPMask(addr.AsSlice()).Size(); size == 32 {
			return ones, nil
		}
	}
	return 0, fmt.Errorf("invalid mask %q", text)
}

// prefixPredicate returns the predicate of an address or a network.
func prefixPredicate(q qualifiers, prefix netip.Prefix) (predicate, error) {
	addr := prefix.Addr()
	if q.proto == "arp" || q.proto == "rarp" {
		return constant(false), nil
	}
	if q.proto != "" && q.proto != "ip" && q.proto != "ip6" {
		return nil, fmt.Errorf("%s %s has no meaning: want \"%s and %s\"",
			q.proto, q.kind, q.proto, q.kind)
	}
	if q.proto != "" && (q.proto == "ip") != addr.Is4() {
		return nil, fmt.Errorf("%s is not of %s", addr, q.proto)
	}
	want := addr.AsSlice()
	whole, rest := prefix.Bits()/8, prefix.Bits()%8
	mask := ^byte(0xff >> rest)
	return q.ends.of(func(p *packet, e end) bool {
		got := p.addr(e)
		return len(got) == len(want) && bytes.Equal(got[:whole], want[:whole]) &&
			(rest == 0 || got[whole]&mask == want[whole])
	}), nil
}

// number parses a decimal, hexadecimal or octal number.
func (p *parser) number() (int, error) {
	text := p.next().text
	n, err := strconv.ParseUint(text, 0, 31)
	if err != nil {
		return 0, fmt.Errorf("want a number, got %q", text)
	}
	return int(n), nil
}
