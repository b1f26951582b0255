package filter

import (
	"errors"
	"fmt"
	"strconv"
)

// number32 computes a value of a packet. Arithmetic is that of BPF: unsigned, modulo 2^32.
type number32 func(*packet) uint32

// comparison parses "expr relop expr". ok reports whether the tokens are one; the caller then takes
// them for something else.
func (p *parser) comparison() (match predicate, ok bool, err error) {
	needs := constant(true)
	left, ok, err := p.arithmetic(0, &needs)
	if !ok || err != nil {
		return nil, false, err
	}
	var compare func(a, b uint32) bool
	switch {
	case p.accept("=", "=="):
		compare = func(a, b uint32) bool { return a == b }
	case p.accept("!="):
		compare = func(a, b uint32) bool { return a != b }
	case p.accept(">"):
		compare = func(a, b uint32) bool { return a > b }
	case p.accept(">="):
		compare = func(a, b uint32) bool { return a >= b }
	case p.accept("<"):
		compare = func(a, b uint32) bool { return a < b }
	case p.accept("<="):
		compare = func(a, b uint32) bool { return a <= b }
	default:
		return nil, false, nil
	}
	right, ok, err := p.arithmetic(0, &needs)
	if err == nil && !ok {
		err = fmt.Errorf("want a number or an access such as tcp[13], got %q", p.peek().text)
	}
	if err != nil {
		return nil, false, err
	}
	return both(needs, func(p *packet) bool {
		a, b := left(p), right(p)
		return compare(a, b) && !p.short
	}), true, nil
}

// precedence returns the operators from the weakest to the strongest, as in grammar.y.
func precedence() [][]string {
	return [][]string{{"|", "&", "^"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}
}

// arithmetic parses operations of a level and stronger ones. Protocols that its accesses need are
// added to needs.
func (p *parser) arithmetic(level int, needs *predicate) (number32, bool, error) {
	levels := precedence()
	if level == len(levels) {
		return p.operand(needs)
	}
	left, ok, err := p.arithmetic(level+1, needs)
	for ok && err == nil {
		op := p.peek().text
		if !p.accept(levels[level]...) {
			break
		}
		var right number32
		if right, ok, err = p.arithmetic(level+1, needs); ok && err == nil {
			left = operation(op, left, right)
		}
	}
	return left, ok, err
}

func operation(op string, a, b number32) number32 {
	switch op {
	case "+":
		return func(p *packet) uint32 { return a(p) + b(p) }
	case "-":
		return func(p *packet) uint32 { return a(p) - b(p) }
	case "*":
		return func(p *packet) uint32 { return a(p) * b(p) }
	case "&":
		return func(p *packet) uint32 { return a(p) & b(p) }
	case "|":
		return func(p *packet) uint32 { return a(p) | b(p) }
	case "^":
		return func(p *packet) uint32 { return a(p) ^ b(p) }
	case "<<":
		return func(p *packet) uint32 { return a(p) << b(p) }
	case ">>":
		return func(p *packet) uint32 { return a(p) >> b(p) }
	}
	return func(p *packet) uint32 { // division and remainder
		x, y := a(p), b(p)
		switch {
		case y == 0:
			p.short = true // a BPF program ends without a match
			return 0
		case op == "/":
			return x / y
		}
		return x % y
	}
}

// operand parses a number, a name of a value, an access, "len", or a parenthesis.
func (p *parser) operand(needs *predicate) (number32, bool, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, false, errors.New("nested too deeply")
	}
	defer func() { p.depth-- }()
	switch {
	case p.accept("("):
		value, ok, err := p.arithmetic(0, needs)
		return value, ok && p.accept(")"), err
	case p.accept("-"):
		value, ok, err := p.operand(needs)
		return operation("-", func(*packet) uint32 { return 0 }, value), ok, err
	case p.accept("len"):
		return func(p *packet) uint32 { return uint32(len(p.bytes)) }, true, nil
	}
	t := p.next()
	if n, err := strconv.ParseUint(t.text, 0, 32); err == nil {
		return func(*packet) uint32 { return uint32(n) }, true, nil
	}
	if n, ok := namedValue(t.text); ok {
		return func(*packet) uint32 { return n }, true, nil
	}
	if p.accept("[") {
		value, err := p.access(t.text, needs)
		return value, err == nil, err
	}
	return nil, false, nil
}

// access parses the rest of "proto[offset:size]".
func (p *parser) access(proto string, needs *predicate) (number32, error) {
	base, condition, err := accessBase(proto)
	if err != nil {
		return nil, err
	}
	offset, ok, err := p.arithmetic(0, needs)
	if err == nil && !ok {
		err = fmt.Errorf("want an offset after %s[, got %q", proto, p.peek().text)
	}
	if err != nil {
		return nil, err
	}
	size := 1
	if p.accept(":") {
		if size, err = p.number(); err == nil && size != 1 && size != 2 && size != 4 {
			err = fmt.Errorf("invalid size %d of an access: want 1, 2 or 4", size)
		}
		if err != nil {
			return nil, err
		}
	}
	if !p.accept("]") {
		return nil, fmt.Errorf("want ] before %q", p.peek().text)
	}
	*needs = both(*needs, condition)
	return func(p *packet) uint32 { return p.load(uint64(base(p))+uint64(offset(p)), size) }, nil
}

// accessBase returns the offset of a protocol's header and the condition for an access to it. As in
// libpcap, accesses to the upper layer are for IPv4 only, except for ICMPv6.
func accessBase(proto string) (base func(*packet) int, condition predicate, err error) {
	family, ok := protocol(proto)
	start := func(*packet) int { return 0 }
	upper := func(p *packet) int { return p.upper }
	switch {
	case !ok || proto == "arp" || proto == "rarp":
		return nil, nil, fmt.Errorf("no access to %q: want ip, ip6, tcp, udp, sctp, icmp or icmp6",
			proto)
	case proto == "ip", proto == "ip6":
		return start, family, nil
	case proto == "icmp6":
		return upper, func(p *packet) bool { return p.version == 6 && p.proto == protoICMPv6 }, nil
	}
	return upper, func(p *packet) bool {
		return p.version == 4 && !p.fragment && family(p)
	}, nil
}

// namedValue returns the value of a name of pcap-filter(7).
func namedValue(name string) (uint32, bool) {
	values := map[string]uint32{
		"tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16,
		"tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,
		"icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3,
		"icmp-sourcequench": 4, "icmp-redirect": 5, "icmp-echo": 8, "icmp-routeradvert": 9,
		"icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12, "icmp-tstamp": 13,
		"icmp-tstampreply": 14, "icmp-ireq": 15, "icmp-ireqreply": 16, "icmp-maskreq": 17,
		"icmp-maskreply": 18,
		"icmp6type":      0, "icmp6code": 1, "icmp6-destinationunreach": 1, "icmp6-packettoobig": 2,
		"icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4, "icmp6-echo": 128,
		"icmp6-echoreply": 129,
	}
	n, ok := values[name]
	return n, ok
}
