package config

import (
	"fmt"
	"strconv"
	"strings"
)

// option is one flag.
type option struct {
	name    string
	accepts string // the valid values, for errors and for the usage text
	usage   string
	value   value
	// weftOnly marks flags that flannel does not have; FLANNELD_* does not set them.
	weftOnly bool
	// noEnv marks a flag that no variable sets.
	noEnv bool
	// secret marks a flag whose value is not shown.
	secret bool
}

// The syntax of a command line is that of Go's package flag, and so flannel's: -name=value, -name
// value and, for a boolean flag, -name; two dashes are the same as one. Package flag itself is not
// used: its errors do not name the valid values, and it ignores everything after the first argument
// that is not a flag.

// parseArgs sets the options named by the command line and returns their names.
func parseArgs(options []option, args []string) (given map[string]bool, err error) {
	given = map[string]bool{}
	previous := ""
	for len(args) > 0 && !(len(args) == 1 && args[0] == "--") {
		arg := args[0]
		args = args[1:]
		name, val, hasVal := splitArg(arg)
		if name == "" {
			return nil, notAFlag(arg, previous)
		}
		o, err := find(options, name)
		if err != nil {
			return nil, err
		}
		switch {
		case hasVal:
		case o.value.isBool():
			val = "true"
		case len(args) == 0:
			return nil, fmt.Errorf("--%s: missing value, want %s", name, o.accepts)
		default:
			val, args = args[0], args[1:]
		}
		if err := o.set("--"+name, val); err != nil {
			return nil, err
		}
		given[name] = true
		previous = ""
		if o.value.isBool() && !hasVal {
			previous = name
		}
	}
	return given, nil
}

// splitArg splits "--name=value". The name is empty if arg is not a flag.
func splitArg(arg string) (name, val string, hasVal bool) {
	rest, ok := strings.CutPrefix(arg, "-")
	if !ok {
		return "", "", false
	}
	name, val, hasVal = strings.Cut(strings.TrimPrefix(rest, "-"), "=")
	if strings.HasPrefix(name, "-") {
		return "", "", false
	}
	return name, val, hasVal
}

// notAFlag returns the error about an argument that is not a flag. flannel ignores it and all flags
// after it, so that a missing dash silently changes the settings. previous is the flag before it if
// that was a boolean flag without a value.
func notAFlag(arg, previous string) error {
	if _, err := strconv.ParseBool(arg); err == nil && previous != "" {
		return fmt.Errorf("unexpected argument %q; write --%s=%s", arg, previous, arg)
	}
	return fmt.Errorf("unexpected argument %q; weftd -h lists the flags", arg)
}

func find(options []option, name string) (option, error) {
	if isHelp(name) {
		return option{}, ErrHelp
	}
	for _, o := range options {
		if o.name == name {
			return o, nil
		}
	}
	return option{}, fmt.Errorf("--%s: unknown flag; weftd -h lists the flags", name)
}

// set sets the value of the option. where names the flag or the variable in errors.
func (o option) set(where, val string) error {
	if err := o.value.Set(o.unquote(val)); err != nil {
		return fmt.Errorf("%s: invalid value %q, want %s", where, val, o.accepts)
	}
	return nil
}

// unquote removes a pair of quotes around a value. They are left over where no shell reads them: in
// an exec of snap or Kubernetes, in docker's --env-file. A secret may begin and end with quotes of
// its own, so there only the empty pair is removed.
func (o option) unquote(val string) string {
	n := len(val)
	if n < 2 || val[0] != val[n-1] || val[0] != '"' && val[0] != '\'' || o.secret && n > 2 {
		return val
	}
	return val[1 : n-1]
}

// shown returns the value of the option for the status.
func (o option) shown() string {
	if o.secret {
		return "(hidden)"
	}
	return o.value.String()
}

// IsHelp reports whether the argument asks for the usage text.
func IsHelp(arg string) bool {
	name, _, _ := splitArg(arg)
	return isHelp(name)
}

func isHelp(name string) bool { return name == "h" || name == "help" }
