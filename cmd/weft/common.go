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
// that the subcommand must exit with status: after help or an error.
func parseFlags(flags *flag.FlagSet, args []string, operands ...string) (status int, done bool) {
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0, true
	case err != nil:
		return 2, true // flag has printed the error
	case flags.NArg() > 0 && len(operands) == 0:
		fmt.Fprintf(flags.Output(), "%s: %q: want flags only\n", flags.Name(), flags.Arg(0))
		return 2, true
	case flags.NArg() != len(operands):
		fmt.Fprintf(flags.Output(), "%s: want %s after the flags, got %d arguments\n", flags.Name(),
			strings.Join(operands, " "), flags.NArg())
		return 2, true
	}
	return 0, false
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
