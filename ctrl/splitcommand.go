package ctrl

import (
	"errors"
	"fmt"
	"strings"
)

// CheckCommand reports whether RunCommand can split the command line or leaves it to a shell.
func CheckCommand(line string) error {
	_, err := commandWords(line, func(string) string { return "" })
	return err
}

// commandWords returns the program and the arguments of a command line: those of splitCommand, or
// a shell with the line if it needs one. Without need, no shell runs, as an image may have none.
func commandWords(line string, variable func(name string) string) ([]string, error) {
	words, err := splitCommand(line, variable)
	if errors.Is(err, errNeedsShell) {
		return []string{"sh", "-c", line}, nil
	}
	return words, err
}

// splitCommand splits a command line into words with a subset of the shell's rules: blanks separate
// words; '...' is literal; in "..." and outside quotes $NAME and ${NAME} are replaced by variables;
// a backslash makes the next character literal. A variable's value is never split. Constructs that
// need a shell (pipes, lists, redirection, substitution) give errNeedsShell, as the program would
// receive them as arguments.
//
// No small library fits: github.com/google/shlex does not expand variables, and
// mvdan.cc/sh/v3/shell, a complete shell parser, splits their values.
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

var errNeedsShell = errors.New("needs a shell")

// next consumes the character, quotation or variable at the front.
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
		// A variable without a value does not start a word, as in a shell.
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

// end finishes the current word, if there is one.
func (s *splitter) end() {
	if s.inWord {
		s.words = append(s.words, s.word.String())
		s.word.Reset()
		s.inWord = false
	}
}

// literal consumes a '...' quotation.
func (s *splitter) literal() error {
	text, rest, ok := strings.Cut(s.rest[1:], "'")
	if !ok {
		return errors.New("command has an unclosed ' quotation")
	}
	s.word.WriteString(text)
	s.rest = rest
	return nil
}

// quoted consumes a "..." quotation.
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
	return errors.New(`command has an unclosed " quotation`)
}

// expand consumes a $NAME or ${NAME}; a $ before anything else is literal.
func (s *splitter) expand() error {
	rest := s.rest[1:]
	if strings.HasPrefix(rest, "(") {
		return fmt.Errorf("command with %q %w", "$(", errNeedsShell)
	}
	if inner, ok := strings.CutPrefix(rest, "{"); ok {
		name, after, closed := strings.Cut(inner, "}")
		if !closed || name == "" || nameLen(name) != len(name) {
			return errors.New("command has an invalid ${NAME}")
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

// nameLen returns the length of the variable name at the front of s.
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
