// Command weft is the operator's tool: it shows the overlay working on one machine and measures it.
//
// Each subcommand has a file of its own. They run without root: what they build lives in namespaces
// of the process and ends with it (see deploy/lab).
package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// command is one subcommand. run gets the arguments after its name and returns the exit status.
type command struct {
	name, summary string
	run           func(args []string) int
}

// commands lists the subcommands in the order of the usage text.
func commands() []command {
	return []command{
		{"demo", "three nodes on this machine, pods that reach each other", demo},
		{"bench", "compare the speed of weftd with other targets; bench report and bench compare show results", runBench},
		{"docker-opts", "dockerd's options for the subnet of this node", dockerOpts},
		{"version", "print version, commit and Go version", printVersion},
	}
}

func main() { os.Exit(run(os.Args[1:])) }

// run runs the subcommand that the arguments begin with and returns the exit status.
func run(args []string) int {
	if len(args) == 0 || len(args) == 1 && slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]) {
		usage(os.Stdout)
		return 0
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(args[1:])
		}
	}
	fmt.Fprintf(os.Stderr, "weft: no subcommand %q\n", strings.Join(args, " "))
	usage(os.Stderr)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprint(w, "weft shows and measures the overlay. Usage: weft <subcommand> [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-12s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, "\nweft <subcommand> -h lists its flags.\n")
}
