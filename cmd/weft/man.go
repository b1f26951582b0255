package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"weft/cmd/weft/cli"
)

// newMan returns weft man.
func newMan() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "man DIR",
		Short: "write the manual pages to a directory",
		Args:  cli.Operands("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			// A fixed date keeps builds reproducible.
			header := doc.GenManHeader{Section: "8", Source: "weft", Date: new(time.Unix(0, 0))}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			err := errors.Join(os.MkdirAll(args[0], 0o755), doc.GenManTree(root, &header, args[0]))
			if err != nil || !asJSON {
				return err
			}
			pages, err := filepath.Glob(filepath.Join(args[0], "weft*."+header.Section))
			if err != nil {
				return err
			}
			return cli.WriteJSON(cmd.OutOrStdout(), map[string][]string{"files": pages})
		},
	}
	cli.AddJSON(cmd, &asJSON)
	return cmd
}
