//go:build !nolab

package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"weft/bench/report"
)

// benchReport writes pages and tables of a result.
func benchReport(args []string) int {
	flags := flag.NewFlagSet("weft bench report", flag.ContinueOnError)
	html := flags.String("html", "report.html",
		"`file` for a page with charts; - is the standard output, empty writes none")
	markdown := flags.String("markdown", "", "`file` for the Markdown page docs/benchmarks.md; - is the standard output")
	summary := flags.String("summary", "", "`file` for the Markdown table of the README; - is the standard output")
	setUsage(flags, "writes a result as pages and tables", "[flags] RESULT.json")
	if status, done := parseFlags(flags, args, "RESULT.json"); done {
		return status
	}
	result, err := readResult(flags.Arg(0))
	if err != nil {
		return fail(os.Stderr, err)
	}
	for _, output := range []struct {
		path  string
		write func(io.Writer) error
	}{{*html, result.HTML}, {*markdown, result.Markdown}, {*summary, result.Summary}} {
		if output.path == "" {
			continue
		}
		if err := writeFile(output.path, output.write); err != nil {
			return fail(os.Stderr, err)
		}
		if output.path != "-" {
			fmt.Fprintln(os.Stderr, "wrote", output.path)
		}
	}
	return 0
}

// setUsage sets the usage text of a subcommand that reads results.
func setUsage(flags *flag.FlagSet, summary, arguments string) {
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "%[1]s %[2]s. Usage: %[1]s %[3]s\n\n"+
			"The result file - is the standard input.\n\n", flags.Name(), summary, arguments)
		flags.PrintDefaults()
	}
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
