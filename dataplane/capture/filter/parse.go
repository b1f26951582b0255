package filter

import (
	"errors"
	"fmt"
)

// parser is a recursive descent parser over the grammar of libpcap's grammar.y.
type parser struct {
	tokens []token
	at     int
	depth  int
	last   qualifiers // of the last primitive, for "host a or b"
}

// maxDepth limits the nesting of parentheses and negations.
const maxDepth = 100

func (p *parser) peek() token { return p.tokens[p.at] }

func (p *parser) next() token {
	t := p.tokens[p.at]
	if p.at < len(p.tokens)-1 {
		p.at++
	}
	return t
}

// accept skips the next token if it is one of the words, and reports whether it did.
func (p *parser) accept(words ...string) bool {
	for _, w := range words {
		if t := p.peek(); t.text == w && !t.escaped {
			p.next()
			return true
		}
	}
	return false
}

// rewind goes back to a token. It returns true, for use in conditions.
func (p *parser) rewind(to int) bool {
	p.at = to
	return true
}

func (p *parser) parse() (predicate, error) {
	match, err := p.expression()
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.text != "" {
		return nil, fmt.Errorf("unexpected %q", t.text)
	}
	return match, nil
}

// expression parses terms joined by "and" and "or", from left to right.
func (p *parser) expression() (predicate, error) {
	left, err := p.term()
	for err == nil {
		var right predicate
		switch {
		case p.accept("and", "&&"):
			if right, err = p.term(); err == nil {
				left = both(left, right)
			}
		case p.accept("or", "||"):
			if right, err = p.term(); err == nil {
				left = either(left, right)
			}
		default:
			return left, nil
		}
	}
	return nil, err
}

func both(a, b predicate) predicate   { return func(p *packet) bool { return a(p) && b(p) } }
func either(a, b predicate) predicate { return func(p *packet) bool { return a(p) || b(p) } }
func not(a predicate) predicate       { return func(p *packet) bool { return !a(p) } }

func constant(v bool) predicate { return func(*packet) bool { return v } }

// term parses a negation, a parenthesis, a comparison or a primitive.
func (p *parser) term() (predicate, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, errors.New("nested too deeply")
	}
	defer func() { p.depth-- }()
	if p.accept("not", "!") {
		match, err := p.term()
		if err != nil {
			return nil, err
		}
		return not(match), nil
	}
	start := p.at
	if match, ok, err := p.comparison(); ok || err != nil {
		return match, err
	}
	p.rewind(start)
	if p.accept("(") {
		match, err := p.expression()
		if err != nil {
			return nil, err
		}
		if !p.accept(")") {
			return nil, fmt.Errorf("want ) before %q", p.peek().text)
		}
		return match, nil
	}
	return p.primitive()
}
