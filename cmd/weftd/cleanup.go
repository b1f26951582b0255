package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/dataplane/fastpath"
)

// cleanupCommand is the only argument that is not a flag.
const cleanupCommand = "cleanup"

const cleanupUsage = "weftd cleanup removes the devices, routes and rules of a stopped weftd, " +
	"and prints them. Usage: weftd cleanup\n"

// cleanup removes the kernel state that a stopped daemon leaves behind, lists it on stdout, and
// returns the exit code. It continues after errors.
func cleanup(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := noArguments(args)
	if err == nil {
		err = checkNetAdmin()
	}
	var removed []string
	if err == nil {
		removed, err = removeAll(ctx)
	}
	if errors.Is(err, config.ErrHelp) {
		_, err := io.WriteString(stdout, cleanupUsage)
		return exitCode(err)
	}
	var lines strings.Builder
	for _, r := range removed {
		fmt.Fprintf(&lines, "removed %s\n", r)
	}
	if len(removed) == 0 && err == nil {
		lines.WriteString("nothing to remove\n")
	}
	_, werr := io.WriteString(stdout, lines.String())
	if err := errors.Join(err, werr); err != nil {
		fmt.Fprintf(stderr, "weftd: cleanup: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return 1
	}
	return 0
}

// noArguments returns an error if there are arguments after the command.
func noArguments(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if config.IsHelp(args[0]) {
		return config.ErrHelp
	}
	return fmt.Errorf("unexpected argument %q", args[0])
}

// removeAll removes the devices, routes and rules of all networks and returns a description of
// each.
func removeAll(ctx context.Context) (removed []string, err error) {
	kernel, err := ctrl.OpenKernel(nil)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	programs, programsErr := fastpath.RemoveAll()
	removed, err = ctrl.Cleanup(kernel)
	rules, rulesErr := netfilter.Cleanup(ctx)
	return slices.Concat(removed, programs, rules), errors.Join(err, programsErr, rulesErr)
}
