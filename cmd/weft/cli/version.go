package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"weft/cmd/buildinfo"
)

// newVersion returns weft version.
func newVersion(b buildinfo.Info) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "print version, commit and Go version",
		Args:  Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return WriteJSON(cmd.OutOrStdout(), map[string]string{"version": b.Version,
					"commit": b.Commit, "go": b.GoVersion, "os": runtime.GOOS, "arch": runtime.GOARCH})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "weft %s commit %s %s %s/%s\n", b.Version,
				b.Commit, b.GoVersion, runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	AddJSON(cmd, &asJSON)
	return cmd
}
