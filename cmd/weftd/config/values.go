package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// trueOrFalse describes the values of boolean flags.
const trueOrFalse = "true or false"

// value is the destination of a flag's value.
type value interface {
	// Set parses and stores a value. The text of its error is not shown: the option lists the
	// valid values.
	Set(string) error
	// String returns the current value as it was given.
	String() string
	isBool() bool
}

// ignored is the value of a flag without effect, which accepts any text. It is true for a boolean
// flag.
type ignored bool

// Set does nothing.
func (ignored) Set(string) error { return nil }

// String returns nothing.
func (ignored) String() string { return "" }
func (i ignored) isBool() bool { return bool(i) }

var errInvalid = errors.New("invalid value")

// parsedValue is a value with a parse function. It keeps the text that was parsed, which for the
// default is part of the usage text.
type parsedValue[T any] struct {
	into  *T
	parse func(string) (T, error)
	text  string
	bool  bool
}

// parsed sets *into to the default def.
func parsed[T any](into *T, parse func(string) (T, error), def string) *parsedValue[T] {
	v := &parsedValue[T]{into: into, parse: parse}
	if err := v.Set(def); err != nil {
		panic("default value " + strconv.Quote(def) + " is invalid")
	}
	return v
}

func (v *parsedValue[T]) Set(s string) error {
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.into, v.text = t, s
	return nil
}

func (v *parsedValue[T]) String() string { return v.text }
func (v *parsedValue[T]) isBool() bool   { return v.bool }

func text(into *string, def string) value {
	return parsed(into, func(s string) (string, error) { return s, nil }, def)
}

// nonEmpty accepts any text but the empty one.
func nonEmpty(into *string, def string) value {
	return parsed(into, func(s string) (string, error) {
		if s == "" {
			return "", errInvalid
		}
		return s, nil
	}, def)
}

func boolean(into *bool, def bool) value {
	v := parsed(into, strconv.ParseBool, strconv.FormatBool(def))
	v.bool = true
	return v
}

// tristate accepts true, false and auto.
func tristate(into *Tristate) value {
	v := parsed(into, func(s string) (Tristate, error) {
		if s == "auto" {
			return Auto, nil
		}
		on, err := strconv.ParseBool(s)
		if on {
			return On, err
		}
		return Off, err
	}, "auto")
	v.bool = true
	return v
}

// number accepts the syntax of flannel's integer flags, including 0x10 and 1_000.
func number(into *int, def, low, high int) value {
	parse := func(s string) (int, error) { return parseNumber(s, low, high) }
	return parsed(into, parse, strconv.Itoa(def))
}

func parseNumber(s string, low, high int) (int, error) {
	n, err := strconv.ParseInt(s, 0, strconv.IntSize)
	if err != nil || n < int64(low) || n > int64(high) {
		return 0, errInvalid
	}
	return int(n), nil
}

// duration accepts a whole number of units.
func duration(into *time.Duration, unit time.Duration, def, low, high int) value {
	return parsed(into, func(s string) (time.Duration, error) {
		n, err := parseNumber(s, low, high)
		return time.Duration(n) * unit, err
	}, strconv.Itoa(def))
}

func oneOf(into *string, allowed ...string) value {
	return parsed(into, func(s string) (string, error) {
		if !slices.Contains(allowed, s) {
			return "", errInvalid
		}
		return s, nil
	}, allowed[0])
}

func anyFamily(netip.Addr) bool { return true }
func ipv4(a netip.Addr) bool    { return a.Is4() }
func ipv6(a netip.Addr) bool    { return a.Is6() && !a.Is4In6() }

// address accepts an address of the family, or nothing.
func address(into *netip.Addr, family func(netip.Addr) bool) value {
	return parsed(into, func(s string) (netip.Addr, error) {
		if s == "" {
			return netip.Addr{}, nil
		}
		a, err := netip.ParseAddr(s)
		if err != nil || !family(a) || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return netip.Addr{}, errInvalid
		}
		return a, nil
	}, "")
}

// host accepts the host part of a listen address: an IP address, a name, or nothing for all
// addresses. A dotted number that is not an address is not a name either.
func host(into *string, def string) value {
	name := regexp.MustCompile(`^[A-Za-z0-9.-]*[A-Za-z][A-Za-z0-9.-]*$`)
	return parsed(into, func(s string) (string, error) {
		if _, err := netip.ParseAddr(s); err != nil && s != "" && !name.MatchString(s) {
			return "", errInvalid
		}
		return s, nil
	}, def)
}

func endpoints(into *[]string, def string) value {
	return parsed(into, parseEndpoints, def)
}

// parseEndpoints accepts the same as the etcd client: URLs, or host:port alone. Empty entries, as
// after a trailing comma, are ignored.
func parseEndpoints(s string) ([]string, error) {
	schemes := []string{"http", "https", "unix", "unixs"}
	var list []string
	for e := range strings.SplitSeq(s, ",") {
		e = strings.TrimSpace(e)
		if e == "" {
			continue
		}
		host, port, err := net.SplitHostPort(e)
		if err == nil && host != "" && port != "" && !strings.Contains(e, "/") {
			list = append(list, e)
			continue
		}
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
			return nil, errInvalid
		}
		list = append(list, e)
	}
	if len(list) == 0 {
		return nil, errInvalid
	}
	return list, nil
}

// repeated is a value that is appended to. An empty value appends nothing: templates produce it
// from an unset variable.
type repeated[T any] struct {
	into  *[]T
	parse func(string) (T, error)
}

func (v repeated[T]) Set(s string) error {
	if s == "" {
		return nil
	}
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.into = append(*v.into, t)
	return nil
}

func (v repeated[T]) String() string {
	var list []string
	for _, t := range *v.into {
		list = append(list, fmt.Sprint(t))
	}
	return strings.Join(list, ",")
}

func (repeated[T]) isBool() bool { return false }

func names(into *[]string) value {
	return repeated[string]{into, func(s string) (string, error) { return s, nil }}
}

func patterns(into *[]*regexp.Regexp) value {
	return repeated[*regexp.Regexp]{into, regexp.Compile}
}
