package main

import (
	"flag"
	"fmt"
	"os"

	"weft/bench"
)

// report makes a page or a table of a result.
func report(args []string) int {
	flags := flag.NewFlagSet("weft bench report", flag.ContinueOnError)
	html := flags.String("html", "report.html", "`file` for the page; - is the standard output, empty is none")
	markdown := flags.String("markdown", "", "`file` for the Markdown table; - is the standard output")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "weft bench report: want one result file")
		return 2
	}
	result, err := readResult(flags.Arg(0))
	if err != nil {
		return fail(os.Stderr, err)
	}
	if *html != "" {
		if err := writeFile(*html, result.HTML); err != nil {
			return fail(os.Stderr, err)
		}
	}
	if *markdown != "" {
		if err := writeFile(*markdown, result.Markdown); err != nil {
			return fail(os.Stderr, err)
		}
	}
	return 0
}

// compare says what differs between two results beyond the noise. It returns 0 whatever it finds: which change is bad is
// for the reader to say.
func compare(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "weft bench compare: want two result files, the older one first")
		return 2
	}
	var results [2]*bench.Result
	for i, path := range args {
		var err error
		if results[i], err = readResult(path); err != nil {
			return fail(os.Stderr, err)
		}
	}
	if err := bench.Compare(os.Stdout, results[0], results[1]); err != nil {
		return fail(os.Stderr, err)
	}
	return 0
}

func readResult(path string) (*bench.Result, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	result, err := bench.ReadResult(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return result, nil
}
