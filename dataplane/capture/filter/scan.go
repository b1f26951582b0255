package filter

import (
	"fmt"
	"strings"
)

// maxTokens bounds the work for one expression: filters come from outside the daemon.
const maxTokens = 1000

// token is a word or an operator of an expression; the last one is empty.
type token struct {
	text    string
	escaped bool // after a backslash: never a keyword
}

// operators of two characters come before their beginnings.
func operators() []string {
	return []string{"&&", "||", "!=", "==", ">=", "<=", "<<", ">>",
		"(", ")", "[", "]", "!", "=", "<", ">", "&", "|", "^", "+", "*", "/", "%"}
}

// scan splits an expression into tokens. A colon belongs to an IPv6 address, except between
// brackets, and a minus to a word such as tcp-syn or a range of ports, except between spaces or
// beside a number in a comparison.
func scan(s string) ([]token, error) {
	var tokens []token
	brackets := 0
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return append(tokens, token{}), nil
		}
		if len(tokens) >= maxTokens {
			return nil, fmt.Errorf("more than %d words", maxTokens)
		}
		t := next(s, brackets > 0)
		switch t {
		case "":
			return nil, fmt.Errorf("unexpected character %q", s[0])
		case "[":
			brackets++
		case "]":
			brackets--
		}
		s = s[len(t):]
		word, escaped := strings.CutPrefix(t, `\`)
		tokens = append(tokens, token{word, escaped})
	}
}

// next returns the token at the beginning of s, or "".
func next(s string, inBrackets bool) string {
	for _, op := range operators() {
		if strings.HasPrefix(s, op) {
			return op
		}
	}
	if s[0] == '-' || inBrackets && s[0] == ':' {
		return s[:1]
	}
	n := 0
	for n < len(s) && isWord(s[n]) && (!inBrackets || s[n] != ':') {
		n++
	}
	if n == 0 && s[0] == '\\' {
		for n = 1; n < len(s) && isWord(s[n]); n++ {
		}
	}
	return s[:n]
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '.' || c == ':' || c == '-' || c == '_'
}
