package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"time"

	"weft/lease"
)

// Network reads the network config file. The cluster allocates the subnets, so their sizes are not
// checked, but each enabled family must have a range.
func (s *Store) Network(ctx context.Context) (lease.Network, error) {
	n, err := parseNetwork(os.ReadFile(s.networkFile))
	if err != nil {
		return lease.Network{}, fmt.Errorf("network config %s: %w", s.networkFile, err)
	}
	return n, nil
}

// parseNetwork parses the results of os.ReadFile.
func parseNetwork(b []byte, err error) (lease.Network, error) {
	if err != nil {
		return lease.Network{}, err
	}
	n, err := lease.ParseNetwork(b)
	if err != nil {
		return lease.Network{}, err
	}
	return n, n.CheckRanges()
}

// WatchNetwork watches the network config file until ctx ends; then it returns nil. current is the
// config in force. After each change of the file it calls changed with a config that can take
// effect, or with the error that prevents it. It ignores a version until it has read it twice
// unchanged, because an editor may still be writing it.
func (s *Store) WatchNetwork(
	ctx context.Context, current lease.Network, changed func(lease.Network, error),
) error {
	tick := time.NewTicker(s.pollInterval)
	defer tick.Stop()
	var read []byte
	var rejected string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := os.ReadFile(s.networkFile)
		stable := bytes.Equal(now, read)
		if read = now; !stable {
			continue
		}
		n, err := parseNetwork(now, err)
		if err == nil {
			err = s.cache.checkNetwork(n)
		}
		switch {
		case err != nil && err.Error() != rejected:
			rejected = err.Error()
			changed(lease.Network{}, fmt.Errorf("network config %s: %w", s.networkFile, err))
		case err == nil && (rejected != "" || !SameNetwork(n, current)):
			rejected, current = "", n
			changed(n, nil)
		}
	}
}

// SameNetwork reports whether two configs have the same effect, regardless of the formatting of
// their JSON.
func SameNetwork(a, b lease.Network) bool {
	for _, n := range []*lease.Network{&a, &b} {
		n.Unknown = nil
		var compact bytes.Buffer
		if err := json.Compact(&compact, n.Backend.Raw); err == nil {
			n.Backend.Raw = compact.Bytes()
		}
	}
	return reflect.DeepEqual(a, b)
}
