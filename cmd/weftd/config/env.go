package config

import (
	"regexp"
	"slices"
	"strings"

	"weft/lease/spelling"
)

// Prefixes of the variables that set flags. flannel's set flannel's flags only.
const (
	weftPrefix    = "WEFTD_"
	flannelPrefix = "FLANNELD_"
)

// environment maps the names of variables to their values.
type environment map[string]string

// parseEnviron parses the form of os.Environ.
func parseEnviron(environ []string) environment {
	vars := environment{}
	for _, e := range environ {
		if name, val, ok := strings.Cut(e, "="); ok {
			vars[name] = val
		}
	}
	return vars
}

// apply sets the options that are not given on the command line from WEFTD_* or, for flannel's
// flags, from FLANNELD_*, and adds them to given. WEFTD_* has precedence. An empty variable counts
// as unset. A repeatable flag takes the whole variable as one value, including commas, as with
// flannel.
func (e environment) apply(options []option, given map[string]bool) error {
	for _, o := range options {
		if given[o.name] || o.noEnv {
			continue
		}
		name, val := e.lookup(o)
		if o.unquote(val) == "" {
			continue
		}
		if err := o.set(name, val); err != nil {
			return err
		}
		given[o.name] = true
	}
	return nil
}

// lookup returns the variable that sets the option and its value, which is empty if there is none.
func (e environment) lookup(o option) (name, val string) {
	name = weftPrefix + o.suffix()
	if val = e[name]; val != "" || o.weftOnly {
		return name, val
	}
	name = flannelPrefix + o.suffix()
	return name, e[name]
}

// suffix returns the part of the variable's name after the prefix.
func (o option) suffix() string { return strings.ToUpper(strings.ReplaceAll(o.name, "-", "_")) }

// variable returns the variable of the option whose prefix is that of the given one if it has such.
func (o option) variable(prefix string) string {
	if o.weftOnly || prefix != flannelPrefix {
		return weftPrefix + o.suffix()
	}
	return flannelPrefix + o.suffix()
}

// UnknownVariable is a variable that looks like one of a flag, but sets none.
type UnknownVariable struct {
	Name    string
	Nearest string // variable that was probably meant; may be empty
}

// unknown returns the variables that set no flag although their prefix is that of flags, or almost:
// WEFT_X and FLANNEL_X for a flag x that is not given.
func (e environment) unknown(options []option, given map[string]bool) []UnknownVariable {
	bySuffix := map[string]option{}
	var suffixes []string
	for _, o := range options {
		bySuffix[o.suffix()] = o
		suffixes = append(suffixes, o.suffix())
	}
	var unknown []UnknownVariable
	for name, val := range e {
		prefix, suffix, _ := strings.Cut(name, "_")
		prefix += "_"
		o, exact := bySuffix[suffix]
		switch {
		case val == "" || exact && o.noEnv:
		case prefix == "WEFT_" && exact && !given[o.name]:
			unknown = append(unknown, UnknownVariable{name, o.variable(weftPrefix)})
		case prefix == "FLANNEL_" && exact && !given[o.name]:
			unknown = append(unknown, UnknownVariable{name, o.variable(flannelPrefix)})
		case prefix != weftPrefix && prefix != flannelPrefix, serviceVariable(suffix, val):
		case exact && (prefix == weftPrefix || !o.weftOnly):
		default:
			u := UnknownVariable{Name: name}
			if o, ok := bySuffix[spelling.Nearest(suffix, suffixes)]; ok && !o.noEnv {
				u.Nearest = o.variable(prefix)
			}
			unknown = append(unknown, u)
		}
	}
	slices.SortFunc(unknown, func(a, b UnknownVariable) int {
		return strings.Compare(a.Name, b.Name)
	})
	return unknown
}

// serviceVariable reports whether Kubernetes sets the variable in every pod of a namespace with a
// Service named weftd or flanneld.
func serviceVariable(suffix, val string) bool {
	return regexp.MustCompile(`^(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)$`).
		MatchString(suffix) || suffix == "PORT" && strings.Contains(val, "://")
}
