package config

import "strings"

// applyEnv sets the options that are not given on the command line from WEFTD_* or, for flannel's
// flags, from FLANNELD_*. WEFTD_* has precedence. An empty variable counts as unset. A repeatable
// flag takes the whole variable as one value, including commas, as with flannel.
func applyEnv(options []option, given map[string]bool, getenv func(string) string) error {
	for _, o := range options {
		if given[o.name] || o.noEnv {
			continue
		}
		name, val := o.fromEnv(getenv)
		if val == "" {
			continue
		}
		if err := o.set(name, val); err != nil {
			return err
		}
	}
	return nil
}

// fromEnv returns the variable that sets the option and its value, which is empty if there is none.
func (o option) fromEnv(getenv func(string) string) (name, val string) {
	suffix := strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
	name = "WEFTD_" + suffix
	if val = getenv(name); val != "" || o.weftOnly {
		return name, val
	}
	name = "FLANNELD_" + suffix
	return name, getenv(name)
}
