package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"weft/cmd/buildinfo"
)

// newVersion returns weft version.
func newVersion(b buildinfo.Info) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print version, commit and Go version",
		Args:  Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "weft %s commit %s %s %s/%s\n", b.Version,
				b.Commit, b.GoVersion, runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
