// Package cli has the commands of the operator's tool for a node, and runs the tool. Command weft
// adds the commands that need a lab. weftd is the tool if it is called by the name weft, so a
// container image holds one program.
//
// Each command has its own file. Those that look at a node ask its daemon through the control
// socket (see cmd/control).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weft/cmd/buildinfo"
	"weft/cmd/control"
)

// statusError is an exit status other than 0, as an error. The command has printed the reason.
type statusError int

// Exit statuses. Success is 0.
const (
	statusProblem  = 1 // the command failed or found a problem
	statusUsage    = 2 // wrong flag or argument
	statusNoDaemon = 3 // the daemon on this node cannot be asked
	statusUnknown  = 4 // the question has no certain answer
)

// Error returns the status.
func (s statusError) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// ExitStatus returns nil for the status 0, else an error with which [Run] returns that status and
// prints nothing.
func ExitStatus(status int) error {
	if status == 0 {
		return nil
	}
	return statusError(status)
}

// NewRoot returns the command with the subcommands of this package and more, in the order of the
// usage text.
func NewRoot(b buildinfo.Info, more ...*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:                        "weft",
		Short:                      "show, demonstrate and measure the overlay network",
		Args:                       cobra.ArbitraryArgs, // for the error text of runRoot
		RunE:                       runRoot,
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true,
		SilenceUsage:               true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{cmd, err} })
	root.SetHelpCommand(newHelp())
	cobra.EnableCommandSorting = false
	root.AddCommand(newStatus(), newDoctor(), newTest(), newTrace(), newCapture(), newTop())
	root.AddCommand(more...)
	root.AddCommand(newBundle(b), newLeaseEntry(), newDockerOpts(), newVersion(b))
	return root
}

// runRoot runs for a command line without a known subcommand.
func runRoot(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownSubcommand(cmd, args)
}

func unknownSubcommand(cmd *cobra.Command, args []string) error {
	text := fmt.Sprintf("unknown subcommand %q", strings.Join(args, " "))
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += fmt.Sprintf(", the nearest is %q", near[0])
	}
	return usageError{cmd, errors.New(text)}
}

// newHelp returns weft help, which unlike cobra's fails for an unknown subcommand.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [SUBCOMMAND]",
		Short: "print the usage text of a subcommand",
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownSubcommand(cmd.Root(), args)
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		},
	}
}

// Run runs the subcommand of root that the arguments begin with and returns the exit status.
func Run(root *cobra.Command, args []string) int {
	root.SetArgs(normalize(root, args))
	return explain(root.ErrOrStderr(), root.ExecuteContext(context.Background()))
}

// explain prints an error and returns the exit status.
func explain(w io.Writer, err error) int {
	var status statusError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintln(w, usage)
		return statusUsage
	}
	Fail(w, err)
	for _, unasked := range []error{control.ErrNoDaemon, control.ErrNoAnswer, control.ErrPermission} {
		if errors.Is(err, unasked) {
			return statusNoDaemon
		}
	}
	return statusProblem
}
