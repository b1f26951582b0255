package netfilter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// spec returns the rule specification as iptables-save prints it, without the leading -A CHAIN.
// Options and their order are those of iptables(8) and of flannel's rules, so that listings can be
// compared by eye.
func (r rule) spec() string { return strings.TrimSpace(r.matchSpec() + " -j " + r.target()) }

// matchSpec returns the part of spec before the target.
func (r rule) matchSpec() string {
	var b strings.Builder
	word := func(format string, args ...any) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, format, args...)
	}
	for _, a := range []struct {
		option string
		match  addrMatch
	}{{"-s", r.src}, {"-d", r.dst}} {
		if !a.match.prefix.IsValid() {
			continue
		}
		if a.match.not {
			word("!")
		}
		word("%s %s", a.option, a.match.prefix)
	}
	if r.udpPort != 0 {
		word("-p udp -m udp --dport %d", r.udpPort)
	}
	if r.mark != 0 {
		word("-m mark --mark %#x/%#x", r.mark, r.mark)
	}
	if r.comment != "" {
		word("-m comment --comment %s", quote(r.comment))
	}
	return b.String()
}

// target returns the verdict as an iptables target. Accepting in the nat table preserves the
// source, because it ends the traversal of that table.
func (r rule) target() string {
	switch r.verdict {
	case verdictJump:
		return r.to
	case verdictReturn:
		return "RETURN"
	case verdictAccept, verdictKeepSource:
		return "ACCEPT"
	case verdictMasquerade:
		return "MASQUERADE"
	case verdictMasqueradeRandom:
		return "MASQUERADE --random-fully"
	case verdictNoTrack:
		return "CT --notrack"
	case verdictDrop:
		return "DROP"
	}
	return fmt.Sprintf("verdict(%d)", r.verdict)
}

// quote returns s as one quoted word for iptables-restore.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// splitWords splits a listed rule into words as iptables-restore does: spaces separate words,
// double quotes preserve spaces, a backslash escapes the next character.
func splitWords(line string) []string {
	var (
		all    []string
		word   []byte
		inWord bool
		quoted bool
	)
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			i++
			word, inWord = append(word, line[i]), true
		case c == '"':
			quoted, inWord = !quoted, true
		case c == ' ' && !quoted:
			if inWord {
				all = append(all, string(word))
			}
			word, inWord = word[:0], false
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		all = append(all, string(word))
	}
	return all
}

// parsedRule is a rule listed by iptables, of any program. Only the options that rule can express
// are parsed; the rest are counted.
type parsedRule struct {
	rule
	line           string // as listed
	target         string // word after -j or -g; empty without one
	matchesMark    bool   // matches the packet mark
	udp            bool   // matches UDP only
	unknownMatches int    // words before the target that rule cannot express
	unknownOptions int    // words after the target that rule cannot express
}

// parse parses one line of `iptables -S`. ok reports whether the line is a rule.
func parse(table, line string) (p parsedRule, ok bool) {
	w := splitWords(line)
	if len(w) < 2 || w[0] != "-A" {
		return parsedRule{}, false
	}
	p.line, p.table, p.chain = line, table, w[1]
	for w = w[2:]; len(w) > 0; {
		w = p.parseOption(w)
	}
	if p.udp != (p.udpPort != 0) {
		p.unknownMatches++
	}
	return p, true
}

// exact reports whether rule describes the listed rule completely.
func (p parsedRule) exact() bool {
	return p.unknownMatches == 0 && p.unknownOptions == 0 && p.verdict != 0
}

// parseOption parses the option at the head of w and returns the words after it.
func (p *parsedRule) parseOption(w []string) (rest []string) {
	not := w[0] == "!" && len(w) > 1
	if not {
		w = w[1:]
	}
	if len(w) > 1 && p.parseValue(w[0], w[1], not) {
		return w[2:]
	}
	switch {
	case w[0] == "--random-fully" && p.verdict == verdictMasquerade:
		p.verdict = verdictMasqueradeRandom
	case w[0] == "--notrack" && p.target == "CT":
		p.verdict = verdictNoTrack
	case p.target != "":
		p.unknownOptions++
	default:
		p.unknownMatches++
	}
	return w[1:]
}

// parseValue parses an option with a value. It reports false if rule cannot express the option.
func (p *parsedRule) parseValue(option, value string, not bool) bool {
	switch option {
	case "-s":
		return parseAddr(&p.src, value, not)
	case "-d":
		return parseAddr(&p.dst, value, not)
	case "-p":
		p.udp = value == "udp" && !not
		return p.udp
	case "-m":
		return value == "udp" || value == "mark" || value == "comment"
	case "--dport":
		port, err := strconv.ParseUint(value, 10, 16)
		p.udpPort = uint16(port)
		return err == nil && !not
	case "--mark":
		p.matchesMark = true
		return !not && p.parseMark(value)
	case "--comment":
		p.comment = value
	case "-j", "-g":
		p.parseTarget(value, option == "-g")
	default:
		return false
	}
	return true
}

func parseAddr(m *addrMatch, value string, not bool) bool {
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return false
	}
	*m = addrMatch{prefix: prefix, not: not}
	return true
}

// parseMark parses VALUE/MASK. It reports false unless all bits of the mask must be set, the only
// mark match that rule can express.
func (p *parsedRule) parseMark(value string) bool {
	v, m, _ := strings.Cut(value, "/")
	mark, err := strconv.ParseUint(v, 0, 32)
	if err != nil {
		return false
	}
	mask, err := strconv.ParseUint(m, 0, 32)
	if err != nil || mask != mark || mark == 0 {
		return false
	}
	p.mark = uint32(mark)
	return true
}

func (p *parsedRule) parseTarget(value string, isGoto bool) {
	p.target = value
	switch value {
	case "RETURN":
		p.verdict = verdictReturn
	case "ACCEPT":
		p.verdict = verdictAccept
	case "DROP":
		p.verdict = verdictDrop
	case "MASQUERADE":
		p.verdict = verdictMasquerade
	case "NOTRACK": // iptables-nft lists rules that were added with -j NOTRACK this way
		p.verdict = verdictNoTrack
	case chainMasquerade, chainForward, chainKeepSource, chainDocker:
		p.verdict, p.to = verdictJump, value
		if isGoto {
			p.unknownOptions++
		}
	}
}
