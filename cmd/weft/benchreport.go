package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"weft/bench/report"
	"weft/cmd/weft/cli"
)

// newBenchReport returns weft bench report.
func newBenchReport() *cobra.Command {
	var html, markdown, summary string
	cmd := &cobra.Command{
		Use:   "report RESULT.json",
		Short: "write a result as pages and tables",
		Long: "weft bench report writes a result as pages and tables.\n\n" +
			"The result file - is the standard input.",
		Args: cli.Operands("RESULT.json"),
		RunE: func(_ *cobra.Command, args []string) error {
			result, err := readResult(args[0])
			if err != nil {
				return err
			}
			return writeReports([]output{
				{html, result.HTML}, {markdown, result.Markdown}, {summary, result.Summary}})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&html, "html", "report.html",
		"`file` for a page with charts; - is the standard output, empty writes none")
	flags.StringVar(&markdown, "markdown", "",
		"`file` for the Markdown page docs/benchmarks.md; - is the standard output")
	flags.StringVar(&summary, "summary", "",
		"`file` for the Markdown table of the README; - is the standard output")
	return cmd
}

// output is a form of a result and the file for it; an empty path writes none.
type output struct {
	path  string
	write func(io.Writer) error
}

func writeReports(outputs []output) error {
	for _, o := range outputs {
		if o.path == "" {
			continue
		}
		if err := writeFile(o.path, o.write); err != nil {
			return err
		}
		if o.path != "-" {
			fmt.Fprintln(os.Stderr, "wrote", o.path)
		}
	}
	return nil
}

// readResult reads a result file; "-" is the standard input.
func readResult(path string) (*report.Result, error) {
	name, file := "standard input", os.Stdin
	if path != "-" {
		var err error
		if file, err = os.Open(path); err != nil {
			return nil, err
		}
		defer file.Close()
		name = path
	}
	result, err := report.Read(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return result, nil
}
