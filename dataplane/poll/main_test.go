package poll

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails if the tests leave a goroutine or a descriptor behind.
func TestMain(m *testing.M) {
	// The netpoller keeps two descriptors from its first use on.
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

// descriptors lists the open descriptors of this process with their targets.
func descriptors() (all []string) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		// The descriptor of the directory itself is closed by now.
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}
