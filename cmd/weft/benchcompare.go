package main

import (
	"errors"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"weft/bench/report"
	"weft/cmd/weft/cli"
)

// newBenchCompare returns weft bench compare. Its exit status does not depend on the changes.
func newBenchCompare() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "compare OLD.json NEW.json",
		Short: "print the metrics that changed between two results",
		Long: "weft bench compare prints the metrics that changed between two results.\n\n" +
			"The result file - is the standard input.",
		Args: cli.Operands("OLD.json", "NEW.json"),
		RunE: func(_ *cobra.Command, args []string) error { return benchCompare(args[0], args[1], asJSON) },
	}
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func benchCompare(old, latest string, asJSON bool) error {
	if old == "-" && latest == "-" {
		return errors.New("the standard input holds one result only: set a file for the other one")
	}
	var results [2]*report.Result
	for i, path := range []string{old, latest} {
		var err error
		if results[i], err = readResult(path); err != nil {
			return err
		}
	}
	if asJSON {
		changes := report.Changes(results[0], results[1])
		changes = slices.DeleteFunc(changes, func(c report.Change) bool { return !c.Changed() })
		return cli.WriteJSON(os.Stdout, append([]report.Change{}, changes...))
	}
	return report.Compare(os.Stdout, results[0], results[1])
}
