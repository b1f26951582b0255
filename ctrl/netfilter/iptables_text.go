package netfilter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// text writes a rule as iptables-save prints it, without the leading -A CHAIN. The words and their order are those of
// iptables(8) and of what flannel leaves, so that a listing can be compared by eye.
func (r rule) text() string {
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
	word("-j %s", r.target())
	return b.String()
}

// target is the verdict in iptables' words. Accepting in the nat table is what keeps a source there: no later rule of
// that table is asked.
func (r rule) target() string {
	switch r.verdict {
	case jump:
		return r.to
	case back:
		return "RETURN"
	case accept, keepSource:
		return "ACCEPT"
	case masquerade:
		return "MASQUERADE"
	case masqueradeRandom:
		return "MASQUERADE --random-fully"
	case noTrack:
		return "CT --notrack"
	}
	return fmt.Sprintf("verdict(%d)", r.verdict)
}

// quote makes one word of s for iptables-restore.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// words cuts a listed rule into words, as iptables-restore does: blanks part them, double quotes keep blanks, a backslash
// takes the next character as it is.
func words(line string) []string {
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

// parsed is a listed rule of anybody's, as far as we understand it.
type parsed struct {
	rule
	line    string // as it was listed
	target  string // the word after -j or -g, empty without one
	marked  bool   // the packet's mark is looked at
	udp     bool   // only UDP is matched
	others  int    // words before the target that rule cannot express: conditions
	options int    // words after the target that rule cannot express
}

// parse reads one line of `iptables -S`; ok tells whether it is a rule at all.
func parse(table, line string) (p parsed, ok bool) {
	w := words(line)
	if len(w) < 2 || w[0] != "-A" {
		return parsed{}, false
	}
	p.line, p.table, p.chain = line, table, w[1]
	for w = w[2:]; len(w) > 0; {
		w = p.take(w)
	}
	if p.udp != (p.udpPort != 0) {
		p.others++
	}
	return p, true
}

// exact tells whether nothing was left out, so that rule says all of it.
func (p parsed) exact() bool { return p.others == 0 && p.options == 0 && p.verdict != 0 }

// take reads the option at the head of w and returns what follows it.
func (p *parsed) take(w []string) (rest []string) {
	not := w[0] == "!" && len(w) > 1
	if not {
		w = w[1:]
	}
	if len(w) > 1 && p.takePair(w[0], w[1], not) {
		return w[2:]
	}
	switch {
	case w[0] == "--random-fully" && p.verdict == masquerade:
		p.verdict = masqueradeRandom
	case w[0] == "--notrack" && p.target == "CT":
		p.verdict = noTrack
	case p.target != "":
		p.options++
	default:
		p.others++
	}
	return w[1:]
}

// takePair reads an option that has a value, and tells whether it could.
func (p *parsed) takePair(option, value string, not bool) bool {
	switch option {
	case "-s":
		return takeAddr(&p.src, value, not)
	case "-d":
		return takeAddr(&p.dst, value, not)
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
		p.marked = true
		return !not && p.takeMark(value)
	case "--comment":
		p.comment = value
	case "-j", "-g":
		p.takeTarget(value, option == "-g")
	default:
		return false
	}
	return true
}

func takeAddr(m *addrMatch, value string, not bool) bool {
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return false
	}
	*m = addrMatch{prefix: prefix, not: not}
	return true
}

// takeMark reads VALUE/MASK and tells whether it asks for all bits of the mask to be set, which is all that rule knows.
func (p *parsed) takeMark(value string) bool {
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

func (p *parsed) takeTarget(value string, away bool) {
	p.target = value
	switch value {
	case "RETURN":
		p.verdict = back
	case "ACCEPT":
		p.verdict = accept
	case "MASQUERADE":
		p.verdict = masquerade
	case "NOTRACK": // how iptables-nft lists what was given by that name
		p.verdict = noTrack
	case chainMasquerade, chainForward, chainKeepSource:
		p.verdict, p.to = jump, value
		if away {
			p.options++
		}
	}
}
