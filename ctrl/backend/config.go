package backend

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"weft/lease"
	"weft/lease/spelling"
)

// decode reads the keys of the Backend object, in any case, into the fields of the struct that c
// points to, which holds the defaults. The error names the key, its value and the type that it must
// have.
func decode(n lease.Network, c any) error {
	list, err := members(n)
	if err != nil {
		return fmt.Errorf("decode config: %w", err)
	}
	for _, m := range list {
		field := reflect.ValueOf(c).Elem().FieldByNameFunc(m.Is)
		if !field.IsValid() {
			continue
		}
		if err := m.Decode(field.Addr().Interface()); err != nil {
			if isSecret(m) {
				return fmt.Errorf("config key %s is not a string", m.Key)
			}
			return fmt.Errorf("config key %w", err)
		}
	}
	return nil
}

// members returns the members of the Backend object; none if it is missing or null.
func members(n lease.Network) ([]lease.Member, error) {
	if raw := string(n.Backend.Raw); raw == "" || raw == "null" {
		return nil, nil
	}
	return lease.Members(n.Backend.Raw)
}

// isSecret reports whether a member of the Backend object must not be shown.
func isSecret(m lease.Member) bool {
	return m.Is("PSK") || m.Is("AccessKeyID") || m.Is("AccessKeySecret")
}

// Settings returns the members of the Backend object for the status, without secrets.
func Settings(n lease.Network) map[string]json.RawMessage {
	settings := map[string]json.RawMessage{"Type": fmt.Appendf(nil, "%q", n.Backend.Type)}
	list, _ := members(n) // New has reported an error
	for _, m := range list {
		switch {
		case m.Is("Type"):
		case isSecret(m):
			settings[m.Key] = json.RawMessage(`"(hidden)"`)
		default:
			settings[m.Key] = m.Value
		}
	}
	return settings
}

// keysOf returns the keys that decode reads into the struct c.
func keysOf(c any) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(c)) {
		keys = append(keys, f.Name)
	}
	return keys
}

// UnknownKey is a key of the network config that has no effect.
type UnknownKey struct {
	Key     string
	Nearest string // key that was probably meant; may be empty
}

// String returns the key, and the nearest one as a question.
func (u UnknownKey) String() string {
	if u.Nearest == "" {
		return u.Key
	}
	return fmt.Sprintf("%s (did you mean %s?)", u.Key, u.Nearest)
}

// backendPrefix precedes the keys of the Backend object in an UnknownKey.
const backendPrefix = "Backend."

// UnknownKeys returns the keys of the network config that have no effect, those of the Backend
// object included. A key that belongs to the other object is among them.
func UnknownKeys(n lease.Network) []UnknownKey {
	own := append([]string{"Type"}, backends()[n.Backend.Type].keys...)
	var unknown []UnknownKey
	for _, key := range n.Unknown {
		nearest := spelling.Nearest(key, lease.NetworkKeys())
		if i := indexKey(own, key); i >= 0 {
			nearest = backendPrefix + own[i]
		}
		unknown = append(unknown, UnknownKey{key, nearest})
	}
	list, _ := members(n) // New reports an error
	for _, m := range list {
		if indexKey(own, m.Key) >= 0 {
			continue
		}
		u := UnknownKey{Key: backendPrefix + m.Key}
		if nearest := spelling.Nearest(m.Key, own); nearest != "" {
			u.Nearest = backendPrefix + nearest
		}
		if i := indexKey(lease.NetworkKeys(), m.Key); i >= 0 {
			u.Nearest = lease.NetworkKeys()[i]
		}
		unknown = append(unknown, u)
	}
	return unknown
}

// indexKey returns the index of a key in any case, or -1.
func indexKey(keys []string, key string) int {
	return slices.IndexFunc(keys, func(k string) bool { return strings.EqualFold(k, key) })
}
