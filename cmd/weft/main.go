// Command weft is the operator's tool: it shows the state of the overlay on this node, and
// demonstrates and measures the overlay on one machine.
//
// Package cli has the commands for a node. Here are those that need a lab, each with its own file.
// They need no root: the lab exists in namespaces of the process and ends with it (see deploy/lab).
package main

import (
	"os"

	"github.com/spf13/cobra"

	"weft/cmd/buildinfo"
	"weft/cmd/weft/cli"
)

// version and commit are set by the linker: -X main.version=... -X main.commit=...
var version, commit string

func main() { os.Exit(run(os.Args[1:])) }

// run runs the subcommand that the arguments begin with and returns the exit status.
func run(args []string) int { return cli.Run(newRoot(), args) }

// newRoot returns the command with all subcommands.
func newRoot() *cobra.Command {
	return cli.NewRoot(buildinfo.Read(version, commit), newDemo(), newBench(), newMan())
}
