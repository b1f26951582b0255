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

// Network reads the network config file. Subnets are not cut from it here, so its sizes are not checked, but it must have
// a range for each family that is on.
func (s *Store) Network(ctx context.Context) (lease.Network, error) {
	n, err := parseNetwork(os.ReadFile(s.networkFile))
	if err != nil {
		return lease.Network{}, fmt.Errorf("network config %s: %w", s.networkFile, err)
	}
	return n, nil
}

// parseNetwork takes what os.ReadFile returns.
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

// WatchNetwork follows the network config file until ctx ends; then it returns nil. Whenever the file says something else
// than before, which was current at first, it calls changed: with a config that can take effect, or with the reason why
// the file's cannot. A text counts once it was read the same twice, since an editor may still be writing it.
func (s *Store) WatchNetwork(ctx context.Context, current lease.Network, changed func(lease.Network, error)) error {
	tick := time.NewTicker(s.poll)
	defer tick.Stop()
	var read []byte
	var refused string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := os.ReadFile(s.networkFile)
		settled := bytes.Equal(now, read)
		if read = now; !settled {
			continue
		}
		n, err := parseNetwork(now, err)
		if err == nil {
			err = s.roster.fits(n)
		}
		switch {
		case err != nil && err.Error() != refused:
			refused = err.Error()
			changed(lease.Network{}, fmt.Errorf("network config %s: %w", s.networkFile, err))
		case err == nil && (refused != "" || !SameNetwork(n, current)):
			refused, current = "", n
			changed(n, nil)
		}
	}
}

// SameNetwork reports whether two configs say the same, however their JSON is set.
func SameNetwork(a, b lease.Network) bool {
	for _, n := range []*lease.Network{&a, &b} {
		var compact bytes.Buffer
		if err := json.Compact(&compact, n.Backend.Raw); err == nil {
			n.Backend.Raw = compact.Bytes()
		}
	}
	return reflect.DeepEqual(a, b)
}
