package udp

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	before := descriptors()
	status := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	if after := descriptors(); len(after) > len(before)+1 { // Go's poller has one, once it is used
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
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil && target != "anon_inode:[eventpoll]" {
			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}
