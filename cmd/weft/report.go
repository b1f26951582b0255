package main

import (
	"errors"
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
	describe(flags, "shows a result as a page and as a table", "[flags] RESULT.json")
	if status, done := parseFlags(flags, args, "RESULT.json"); done {
		return status
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
	flags := flag.NewFlagSet("weft bench compare", flag.ContinueOnError)
	describe(flags, "says what changed beyond the noise", "OLD.json NEW.json")
	if status, done := parseFlags(flags, args, "OLD.json", "NEW.json"); done {
		return status
	}
	if flags.Arg(0) == "-" && flags.Arg(1) == "-" {
		return fail(os.Stderr, errors.New("the standard input holds one result only: name a file for the other one"))
	}
	var results [2]*bench.Result
	for i := range results {
		var err error
		if results[i], err = readResult(flags.Arg(i)); err != nil {
			return fail(os.Stderr, err)
		}
	}
	if err := bench.Compare(os.Stdout, results[0], results[1]); err != nil {
		return fail(os.Stderr, err)
	}
	return 0
}

// describe gives flags a usage text that names what follows the program.
func describe(flags *flag.FlagSet, what, arguments string) {
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "%[1]s %[2]s. Usage: %[1]s %[3]s\n\nAs a result, - is the standard input.\n\n", flags.Name(), what, arguments)
		flags.PrintDefaults()
	}
}

// readResult reads a file; "-" is the standard input.
func readResult(path string) (result *bench.Result, err error) {
	name, file := "standard input", os.Stdin
	if path != "-" {
		if file, err = os.Open(path); err != nil {
			return nil, err
		}
		defer file.Close()
		name = path
	}
	if result, err = bench.ReadResult(file); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return result, nil
}
