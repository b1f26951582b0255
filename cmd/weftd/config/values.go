package config

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// yesOrNo is what a flag that is on or off takes.
const yesOrNo = "true or false"

// value is where the text of a flag goes.
type value interface {
	// Set parses and keeps one value. Its error needs no text: the option says
	// what is allowed.
	Set(string) error
	// String returns the current value as it would be given.
	String() string
	isBool() bool
}

var errNotAllowed = errors.New("not allowed")

// parsedValue is a value that one function parses. What it keeps as text is
// what it was given, which is what the usage text shows as the default.
type parsedValue[T any] struct {
	into  *T
	parse func(string) (T, error)
	text  string
	flag  bool
}

// parsed sets *into to the default def.
func parsed[T any](into *T, parse func(string) (T, error), def string) *parsedValue[T] {
	v := &parsedValue[T]{into: into, parse: parse}
	if err := v.Set(def); err != nil {
		panic("default value " + strconv.Quote(def) + " is not allowed")
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
func (v *parsedValue[T]) isBool() bool   { return v.flag }

func text(into *string, def string) value {
	return parsed(into, func(s string) (string, error) { return s, nil }, def)
}

// filled is text that may not be empty.
func filled(into *string, def string) value {
	return parsed(into, func(s string) (string, error) {
		if s == "" {
			return "", errNotAllowed
		}
		return s, nil
	}, def)
}

func yesNo(into *bool, def bool) value {
	v := parsed(into, strconv.ParseBool, strconv.FormatBool(def))
	v.flag = true
	return v
}

// autoOrYesNo is yes, no, or what the rest of the command line suggests.
func autoOrYesNo(into *Tristate) value {
	v := parsed(into, func(s string) (Tristate, error) {
		if s == "auto" {
			return Auto, nil
		}
		yes, err := strconv.ParseBool(s)
		if yes {
			return On, err
		}
		return Off, err
	}, "auto")
	v.flag = true
	return v
}

// number takes what flannel's integer flags take, 0x10 and 1_000 included.
func number(into *int, def, low, high int) value {
	return parsed(into, func(s string) (int, error) { return parseNumber(s, low, high) }, strconv.Itoa(def))
}

func parseNumber(s string, low, high int) (int, error) {
	n, err := strconv.ParseInt(s, 0, strconv.IntSize)
	if err != nil || n < int64(low) || n > int64(high) {
		return 0, errNotAllowed
	}
	return int(n), nil
}

// duration is a whole number of units.
func duration(into *time.Duration, unit time.Duration, def, low, high int) value {
	return parsed(into, func(s string) (time.Duration, error) {
		n, err := parseNumber(s, low, high)
		return time.Duration(n) * unit, err
	}, strconv.Itoa(def))
}

func oneOf(into *string, allowed ...string) value {
	return parsed(into, func(s string) (string, error) {
		if !slices.Contains(allowed, s) {
			return "", errNotAllowed
		}
		return s, nil
	}, allowed[0])
}

func anyFamily(netip.Addr) bool { return true }
func ipv4(a netip.Addr) bool    { return a.Is4() }
func ipv6(a netip.Addr) bool    { return a.Is6() && !a.Is4In6() }

// address takes an address of the family, or nothing for none.
func address(into *netip.Addr, family func(netip.Addr) bool) value {
	return parsed(into, func(s string) (netip.Addr, error) {
		if s == "" {
			return netip.Addr{}, nil
		}
		a, err := netip.ParseAddr(s)
		if err != nil || !family(a) || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return netip.Addr{}, errNotAllowed
		}
		return a, nil
	}, "")
}

// host takes what a server may listen on: an address, a name, or nothing for
// every address. A dotted number that is no address is no name either.
func host(into *string, def string) value {
	name := regexp.MustCompile(`^[A-Za-z0-9.-]*[A-Za-z][A-Za-z0-9.-]*$`)
	return parsed(into, func(s string) (string, error) {
		if _, err := netip.ParseAddr(s); err != nil && s != "" && !name.MatchString(s) {
			return "", errNotAllowed
		}
		return s, nil
	}, def)
}

func endpoints(into *[]string, def string) value {
	return parsed(into, parseEndpoints, def)
}

// parseEndpoints takes what the etcd client does: URLs, or host:port alone. An
// empty entry is what a comma at the end leaves.
func parseEndpoints(s string) ([]string, error) {
	schemes := []string{"http", "https", "unix", "unixs"}
	var list []string
	for e := range strings.SplitSeq(s, ",") {
		e = strings.TrimSpace(e)
		if e == "" {
			continue
		}
		if host, port, err := net.SplitHostPort(e); err == nil && host != "" && port != "" && !strings.Contains(e, "/") {
			list = append(list, e)
			continue
		}
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
			return nil, errNotAllowed
		}
		list = append(list, e)
	}
	if len(list) == 0 {
		return nil, errNotAllowed
	}
	return list, nil
}

// repeated is a value that is added to each time. An empty one adds nothing: it
// is what a template leaves of a variable that is not set.
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

func (repeated[T]) String() string { return "" }
func (repeated[T]) isBool() bool   { return false }

func names(into *[]string) value {
	return repeated[string]{into, func(s string) (string, error) { return s, nil }}
}

func patterns(into *[]*regexp.Regexp) value {
	return repeated[*regexp.Regexp]{into, regexp.Compile}
}
