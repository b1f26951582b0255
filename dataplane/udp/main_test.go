package udp

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// Go's poller has two for good once it was used.
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

// descriptors lists what this process has open, with what each is.
func descriptors() (all []string) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil { // the directory's own is gone by now

			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}
