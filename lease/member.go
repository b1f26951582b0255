package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Member is a member of a JSON object.
type Member struct {
	Key   string // as written; keys match in any case
	Value json.RawMessage
}

// Members returns the members of a JSON object in their order.
func Members(b []byte) ([]Member, error) {
	members, err := readMembers(json.NewDecoder(bytes.NewReader(b)), b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("unexpected end of the object")
	}
	return members, err
}

// readMembers reads an object from d, which reads b.
func readMembers(d *json.Decoder, b []byte) (members []Member, err error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	if token != json.Delim('{') {
		return nil, fmt.Errorf("%s is not an object", Excerpt(b))
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := Member{Key: fmt.Sprint(key)}
		if err := d.Decode(&m.Value); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Key, err)
		}
		members = append(members, m)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("text after the object: %s", Excerpt(b[d.InputOffset():]))
	}
	return members, nil
}

// Is reports whether the member has the key.
func (m Member) Is(key string) bool { return strings.EqualFold(m.Key, key) }

// Decode stores the value in into, a pointer. The error names the key, the value and the type that
// it must have. Null stores nothing.
func (m Member) Decode(into any) error {
	if json.Unmarshal(m.Value, into) != nil {
		return fmt.Errorf("%s is %s, want %s", m.Key, Excerpt(m.Value), typeText(into))
	}
	return nil
}

// typeText describes the JSON that a pointer's type is decoded from.
func typeText(pointer any) string {
	switch pointer.(type) {
	case *bool:
		return "true or false"
	case *int:
		return "a whole number"
	case *uint:
		return "a whole number from 0"
	case *string:
		return "a string"
	case *netip.Addr:
		return "an IP address"
	case *netip.Prefix:
		return "a network such as 10.5.0.0/16"
	}
	return "another type"
}

// excerptLen is the greatest length of an Excerpt in bytes, for errors of one line.
const excerptLen = 60

// Excerpt returns a JSON text on one line, shortened if it is long.
func Excerpt(b []byte) string {
	var compact bytes.Buffer
	if json.Compact(&compact, b) != nil {
		compact.Reset()
		compact.WriteString(strings.Join(strings.Fields(string(b)), " "))
	}
	if compact.Len() > excerptLen {
		compact.Truncate(excerptLen)
		compact.WriteString("...")
	}
	return strings.ToValidUTF8(compact.String(), "")
}
