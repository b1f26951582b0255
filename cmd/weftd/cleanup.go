package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/netfilter"
)

// cleanupCommand is the only argument that is no flag.
const cleanupCommand = "cleanup"

// cleanup removes what a daemon leaves in the kernel when it stops, says what that
// was, and returns the exit code. It goes on where something cannot be removed.
func cleanup(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := noArguments(args)
	var removed []string
	if err == nil {
		removed, err = removeAll(ctx)
	}
	if errors.Is(err, config.ErrHelp) {
		return printed(config.PrintUsage(stdout))
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

// noArguments refuses what follows the command.
func noArguments(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if config.IsHelp(args[0]) {
		return config.ErrHelp
	}
	return fmt.Errorf("argument %q: it takes none", args[0])
}

// removeAll removes devices, routes and rules, of every network, and says in words
// what those were.
func removeAll(ctx context.Context) (removed []string, err error) {
	kernel, err := ctrl.OpenKernel()
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	removed, err = ctrl.Cleanup(kernel)
	rules, rulesErr := netfilter.Cleanup(ctx)
	return append(removed, rules...), errors.Join(err, rulesErr)
}
