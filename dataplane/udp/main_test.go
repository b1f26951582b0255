package udp

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// Initialise the Go netpoller, which keeps two descriptors open.
	in, out, err := os.Pipe()
	if err := errors.Join(err, in.Close(), out.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	before := descriptors()
	status := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	if after := descriptors(); len(after) > len(before) {
		fmt.Fprintf(os.Stderr, "descriptors before the tests: %v\nafter: %v\n", before, after)
		status = max(status, 1)
	}
	os.Exit(status)
}

// descriptors lists the open file descriptors of this process and their targets.
func descriptors() (all []string) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil { // fails for that of the directory
			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}
