package ctrl

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"weft/lease"
)

// extension runs commands of the config when a node comes and goes.
type extension struct {
	network lease.Network
	self    Self
	extensionConfig
	data json.RawMessage // what is published
}

// extensionConfig are the backend's keys: command lines, run without a shell (see splitCommand).
type extensionConfig struct {
	PreStartupCommand   string // before the lease; its output is published and fed to the others' commands
	PostStartupCommand  string // once we have a lease
	SubnetAddCommand    string
	SubnetRemoveCommand string
}

// newExtension reads the four commands and checks that they can be split.
func newExtension(n lease.Network, s Self) (Backend, error) {
	e := &extension{network: n, self: s}
	if err := decode(n, &e.extensionConfig); err != nil {
		return nil, err
	}
	for _, c := range []struct{ key, line string }{
		{"PreStartupCommand", e.PreStartupCommand}, {"PostStartupCommand", e.PostStartupCommand},
		{"SubnetAddCommand", e.SubnetAddCommand}, {"SubnetRemoveCommand", e.SubnetRemoveCommand},
	} {
		if _, err := splitCommand(c.line, func(string) string { return "" }); err != nil {
			return nil, fmt.Errorf("config key %s: %w", c.key, err)
		}
	}
	if e.PreStartupCommand != "" {
		var err error
		if e.data, err = json.Marshal(s.Startup); err != nil {
			return nil, fmt.Errorf("output of PreStartupCommand: %w", err)
		}
	}
	return e, nil
}

// Plan is the command after the start and one per node.
func (e *extension) Plan(self lease.Lease, all []lease.Lease) State {
	s, paths := newPlan(e.network, "extension", self, all)
	if e.PostStartupCommand != "" {
		env := []string{"NETWORK=" + show(e.network.Network), "SUBNET=" + show(self.Subnet), "IPV6SUBNET=" + show(self.Subnet6),
			"PUBLIC_IP=" + show(self.PublicIP), "PUBLIC_IPV6=" + show(self.PublicIPv6)}
		s.Commands = append(s.Commands, Command{ID: "startup", Add: e.PostStartupCommand, Env: strings.Join(env, "\n")})
	}
	if e.SubnetAddCommand == "" && e.SubnetRemoveCommand == "" {
		return s
	}
	for _, p := range paths {
		// The data of both families is that of the node; flannel publishes it once.
		var printed string
		if len(p.lease.BackendData) > 0 {
			if err := json.Unmarshal(p.lease.BackendData, &printed); err != nil {
				s.unreachable(p, fmt.Errorf("its lease has no readable extension data: %w", err))
				continue
			}
		}
		s.Commands = append(s.Commands, Command{
			ID: p.subnet.String(), Add: e.SubnetAddCommand, Remove: e.SubnetRemoveCommand,
			Env: "SUBNET=" + p.subnet.String() + "\nPUBLIC_IP=" + p.public.String(), Stdin: printed,
		})
	}
	return s
}

// show is a value's text, or nothing for an unset one.
func show(v interface {
	IsValid() bool
	String() string
}) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// Spec publishes what PreStartupCommand printed, as a JSON string.
func (e *extension) Spec() Spec {
	return Spec{Type: "extension", LeaseType: "extension", MTU: e.self.Iface.MTU, Data: e.data}
}

// splitCommand cuts a command line into words as a shell would, and does no more: blanks separate words; '...' is
// literal; in "..." and outside quotes $NAME and ${NAME} stand for variables; a backslash makes the next character
// literal. A variable's value is never cut again. What only a shell could do (pipes, lists, redirection, substitution) is
// refused with a hint, as the program would get it as an argument.
func splitCommand(line string, variable func(name string) string) ([]string, error) {
	s := splitter{rest: line, variable: variable}
	for s.rest != "" {
		if err := s.next(); err != nil {
			return nil, err
		}
	}
	s.end()
	return s.words, nil
}

// splitter is the state of splitCommand.
type splitter struct {
	rest     string
	variable func(string) string
	words    []string
	word     strings.Builder
	inWord   bool
}

var errNeedsShell = errors.New(`runs without a shell: for pipes, lists, redirection or substitution use sh -c '...'`)

// next takes the character, quotation or variable at the front.
func (s *splitter) next() error {
	c := s.rest[0]
	switch c {
	case ' ', '\t', '\n':
		s.rest = s.rest[1:]
		s.end()
		return nil
	case ';', '|', '&', '<', '>', '`', '(', ')':
		return fmt.Errorf("command with %q %w", string(c), errNeedsShell)
	}
	if c == '$' {
		// A variable without a value makes no word, as in a shell.
		err := s.expand()
		s.inWord = s.inWord || s.word.Len() > 0
		return err
	}
	s.inWord = true
	switch c {
	case '\'':
		return s.literal()
	case '"':
		return s.quoted()
	case '\\':
		if len(s.rest) < 2 {
			return errors.New("command ends with a backslash")
		}
		s.word.WriteByte(s.rest[1])
		s.rest = s.rest[2:]
		return nil
	}
	s.word.WriteByte(c)
	s.rest = s.rest[1:]
	return nil
}

// end closes the word, if one is open.
func (s *splitter) end() {
	if s.inWord {
		s.words = append(s.words, s.word.String())
		s.word.Reset()
		s.inWord = false
	}
}

// literal takes a '...' quotation.
func (s *splitter) literal() error {
	text, rest, ok := strings.Cut(s.rest[1:], "'")
	if !ok {
		return errors.New("command has an open ' quotation")
	}
	s.word.WriteString(text)
	s.rest = rest
	return nil
}

// quoted takes a "..." quotation.
func (s *splitter) quoted() error {
	s.rest = s.rest[1:]
	for s.rest != "" {
		switch c := s.rest[0]; {
		case c == '"':
			s.rest = s.rest[1:]
			return nil
		case c == '`':
			return fmt.Errorf("command with %q %w", "`", errNeedsShell)
		case c == '$':
			if err := s.expand(); err != nil {
				return err
			}
		case c == '\\' && len(s.rest) > 1 && strings.IndexByte("\"\\$`", s.rest[1]) >= 0:
			s.word.WriteByte(s.rest[1])
			s.rest = s.rest[2:]
		default:
			s.word.WriteByte(c)
			s.rest = s.rest[1:]
		}
	}
	return errors.New(`command has an open " quotation`)
}

// expand takes a $NAME or ${NAME}; a $ before anything else is itself.
func (s *splitter) expand() error {
	rest := s.rest[1:]
	if strings.HasPrefix(rest, "(") {
		return fmt.Errorf("command with %q %w", "$(", errNeedsShell)
	}
	if inner, ok := strings.CutPrefix(rest, "{"); ok {
		name, after, closed := strings.Cut(inner, "}")
		if !closed || name == "" || nameLen(name) != len(name) {
			return errors.New("command has a ${ that is no variable")
		}
		s.word.WriteString(s.variable(name))
		s.rest = after
		return nil
	}
	n := nameLen(rest)
	if n == 0 {
		s.word.WriteByte('$')
	} else {
		s.word.WriteString(s.variable(rest[:n]))
	}
	s.rest = rest[n:]
	return nil
}

// nameLen is the length of the variable name at the front of s.
func nameLen(s string) int {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}
