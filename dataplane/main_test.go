package dataplane

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(leakCheck{m})) }

// leakCheck fails if the tests leave a descriptor or a goroutine behind.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	before, err := openFirst()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := l.m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	after, err := descriptors()
	if err != nil || len(after) > len(before) {
		fmt.Fprintf(os.Stderr, "descriptors before the tests: %v\nafter: %v (%v)\n", before, after, err)
		status = max(status, 1)
	}
	return status
}

// openFirst lists the open descriptors before the tests, including the two that the netpoller keeps
// from its first use on.
func openFirst() ([]string, error) {
	in, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(in.Close(), out.Close()); err != nil {
		return nil, err
	}
	return descriptors()
}

// descriptors lists the open descriptors of this process with their targets.
func descriptors() ([]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list open descriptors: %w", err)
	}
	var all []string
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // the descriptor of the directory itself, closed by now
		}
		all = append(all, e.Name()+" "+target)
	}
	return all, nil
}
