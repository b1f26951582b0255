package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// parseFlags parses a subcommand's flags and checks the number of operands after them. done reports
// that the subcommand must exit with status: after help or an error of one line.
func parseFlags(flags *flag.FlagSet, args []string, operands ...string) (status int, done bool) {
	flags.SetOutput(io.Discard) // package flag prints the usage text after each error
	err := flags.Parse(args)
	flags.SetOutput(os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.Usage()
		return 0, true
	case err != nil:
	case flags.NArg() > 0 && len(operands) == 0:
		err = fmt.Errorf("unexpected argument %q, want flags only", flags.Arg(0))
	case flags.NArg() != len(operands):
		err = fmt.Errorf("want %s after the flags, got %d arguments",
			strings.Join(operands, " "), flags.NArg())
	default:
		return 0, false
	}
	fmt.Fprintf(os.Stderr, "%[1]s: %[2]v; %[1]s -h lists the flags\n", flags.Name(), err)
	return 2, true
}

// fail prints an error and returns the exit status.
func fail(w io.Writer, err error) int {
	fmt.Fprintln(w, "weft:", err)
	return 1
}

// findDaemon sets path to weftd in the directory of this program if it is empty, and checks that it
// exists.
func findDaemon(path *string) error {
	if *path == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		*path = filepath.Join(filepath.Dir(self), "weftd")
	}
	if _, err := os.Stat(*path); err != nil {
		return fmt.Errorf("find weftd: %w: build it (make build) or set --weftd", err)
	}
	return nil
}

// writeFile calls write for a new file; "-" is the standard output.
func writeFile(path string, write func(io.Writer) error) (err error) {
	if path == "-" {
		return write(os.Stdout)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return write(file)
}
