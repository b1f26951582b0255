// Command weft is the operator's tool: it demonstrates and measures the overlay on one machine.
//
// Each subcommand has its own file. demo and bench need no root: the lab exists in namespaces of
// the process and ends with it (see deploy/lab). The build tag nolab leaves them out, and with them
// an etcd server: the tool in the container image is for a node.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// command is a subcommand. run gets the arguments after its name and returns the exit status.
type command struct {
	name, summary string
	run           func(args []string) int
}

// commands lists the subcommands in the order of the usage text.
func commands() []command {
	return append(labCommands(), []command{
		{"docker-opts", "dockerd's options for the subnet of this node", dockerOpts},
		{"version", "print version, commit and Go version", printVersion},
	}...)
}

func main() { os.Exit(run(os.Args[1:])) }

// run runs the subcommand that the arguments begin with and returns the exit status.
func run(args []string) int {
	if len(args) == 0 {
		usage(os.Stdout)
		return 0
	}
	name, rest := args[0], args[1:]
	switch name {
	case "-h", "--h", "-help", "--help", "help":
		if len(rest) == 0 {
			usage(os.Stdout)
			return 0
		}
	case "-v", "--v", "-version", "--version":
		name = "version"
	}
	for _, c := range commands() {
		if c.name == name {
			return c.run(rest)
		}
	}
	fmt.Fprintf(os.Stderr, "weft: unknown subcommand %q; weft -h lists the subcommands\n",
		strings.Join(args, " "))
	return 2
}

func usage(w io.Writer) {
	fmt.Fprint(w, "weft demonstrates and measures the overlay. Usage: weft <subcommand> [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-12s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, "\nweft <subcommand> -h lists its flags.\n")
}
