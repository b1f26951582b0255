package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

// newLeaseEntry returns weft lease-entry.
func newLeaseEntry() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:   "lease-entry",
		Short: "print this node's entry for a lease file",
		Long: "weft lease-entry prints the list item that this node has in the nodes of a lease " +
			"file, with the\nEthernet address or the public key that others need to reach it, so " +
			"that nothing is copied by\nhand. It needs a daemon with any store; without a lease, the " +
			"subnet has to be added.",
		Args: Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.client().LeaseEntry(cmd.Context())
			if err != nil {
				return err
			}
			if !e.Subnet.IsValid() && !e.Subnet6.IsValid() {
				fmt.Fprintf(cmd.ErrOrStderr(), "weft: %s has no lease: add subnet, subnet6 or both\n",
					e.Name)
			}
			if a.json {
				return WriteJSON(cmd.OutOrStdout(), e)
			}
			line, err := json.Marshal(e)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "- %s\n", line) // JSON is YAML
			return err
		},
	}
	a.register(cmd)
	return cmd
}
