package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weft/cmd/control"
)

// usageError is a wrong flag or argument of a command.
type usageError struct {
	cmd *cobra.Command
	err error
}

// Error returns one line that names the command and its help.
func (e usageError) Error() string {
	list := "flags"
	if e.cmd.HasAvailableSubCommands() && !e.cmd.HasParent() {
		list = "subcommands"
	}
	return fmt.Sprintf("%[1]s: %[2]v; %[1]s -h lists the %[3]s", e.cmd.CommandPath(), e.err, list)
}

// Operands returns a check for exactly the named arguments after the flags.
func Operands(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == len(names):
			return nil
		case len(names) == 0:
			return usageError{cmd, fmt.Errorf("unexpected argument %q, want flags only", args[0])}
		}
		return usageError{cmd, fmt.Errorf("want %s after the flags, got %d arguments",
			strings.Join(names, " "), len(args))}
	}
}

// normalize lets long flags begin with one dash, as in package flag, and maps the flags that stand
// for a subcommand.
func normalize(root *cobra.Command, args []string) []string {
	if len(args) == 0 {
		return args
	}
	switch args[0] {
	case "-v", "--v", "-version", "--version":
		return append([]string{"version"}, args[1:]...)
	case "-h", "--h", "-help", "--help":
		return append([]string{"help"}, args[1:]...)
	}
	cmd, _, err := root.Find(args)
	if err != nil || cmd.DisableFlagParsing {
		return args
	}
	cmd.InitDefaultHelpFlag()
	var out []string
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if len(name) > 1 && !strings.HasPrefix(name, "-") && strings.HasPrefix(arg, "-") &&
			cmd.Flag(name) != nil {
			arg = "-" + arg
		}
		out = append(out, arg)
	}
	return out
}

// asking holds the flags of commands that ask the daemon.
type asking struct {
	socket string
	json   bool
}

// register adds the flags to a command.
func (a *asking) register(cmd *cobra.Command) {
	a.registerSocket(cmd)
	AddJSON(cmd, &a.json)
}

// registerSocket adds the flag of the control socket alone.
func (a *asking) registerSocket(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.socket, "control-socket", control.DefaultSocket,
		"`path` of the daemon's control socket")
}

// client returns a client for the daemon.
func (a *asking) client() *control.Client { return control.NewClient(a.socket) }

// AddJSON adds the flag --json to a command.
func AddJSON(cmd *cobra.Command, p *bool) {
	cmd.Flags().BoolVar(p, "json", false, "print JSON")
}

// WriteJSON prints v as indented JSON.
func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Fail prints an error and returns the exit status.
func Fail(w io.Writer, err error) int {
	fmt.Fprintln(w, "weft:", err)
	return statusProblem
}
