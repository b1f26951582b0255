package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

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
