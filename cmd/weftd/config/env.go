package config

import "strings"

// applyEnv sets the options that the command line did not: from WEFTD_* and,
// for the flags that flannel has, from FLANNELD_*. Of the two the former wins.
// An empty variable counts as none. A repeatable flag takes the whole variable
// as one value, commas included, as with flannel.
func applyEnv(options []option, given map[string]bool, getenv func(string) string) error {
	for _, o := range options {
		if given[o.name] || o.cli {
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

// fromEnv returns the variable that counts for the option and its value, which
// is empty if there is none.
func (o option) fromEnv(getenv func(string) string) (name, val string) {
	suffix := strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
	name = "WEFTD_" + suffix
	if val = getenv(name); val != "" || o.own {
		return name, val
	}
	name = "FLANNELD_" + suffix
	return name, getenv(name)
}
