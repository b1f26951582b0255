package cli

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"weft/cmd/control"
)

// newStatus returns weft status.
func newStatus() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show this node: lease, store, backend, interface and the other nodes",
		Args:  Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				err = writeJSON(cmd.OutOrStdout(), s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s)
			}
			if err == nil && !s.Ready {
				return statusError(statusProblem)
			}
			return err
		},
	}
	a.register(cmd)
	return cmd
}

// printStatus prints the status as a screen of text.
func printStatus(w io.Writer, s control.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "node\t%s\tweftd %s\n", s.Node, s.Build.Version)
	fmt.Fprintf(t, "backend\t%s\tdevice %s, MTU %d\n", s.Backend, s.Device, s.MTU)
	for _, c := range s.Conditions {
		state := "ok"
		if !c.OK {
			state = "NOT MET"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, state, c.Reason)
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\n", n.Name, n.Subnet, n.Public)
	}
	return t.Flush()
}
