//go:build !nolab

package main

import (
	"errors"
	"flag"
	"os"

	"weft/bench/report"
)

// benchCompare prints the changes between two results. It returns 0 for any change.
func benchCompare(args []string) int {
	flags := flag.NewFlagSet("weft bench compare", flag.ContinueOnError)
	setUsage(flags, "prints the metrics that changed between two results", "OLD.json NEW.json")
	if status, done := parseFlags(flags, args, "OLD.json", "NEW.json"); done {
		return status
	}
	if flags.Arg(0) == "-" && flags.Arg(1) == "-" {
		return fail(os.Stderr, errors.New("the standard input holds one result only: set a file for the other one"))
	}
	var results [2]*report.Result
	for i := range results {
		var err error
		if results[i], err = readResult(flags.Arg(i)); err != nil {
			return fail(os.Stderr, err)
		}
	}
	if err := report.Compare(os.Stdout, results[0], results[1]); err != nil {
		return fail(os.Stderr, err)
	}
	return 0
}
