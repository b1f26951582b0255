// Package file implements a lease store without a server: a YAML or JSON file that lists all nodes
// and is identical on every node.
//
//	network:
//	  Network: 10.5.0.0/16
//	  Backend: {Type: udp}
//	nodes:
//	  - {name: a, subnet: 10.5.1.0/24, publicIP: 192.0.2.1}
//	  - {name: b, subnet: 10.5.2.0/24, publicIP: 192.0.2.2}
//
// network holds the keys of the network config. A changed file takes effect within two seconds;
// while it is invalid or missing, the previous version stays in force. The store never writes the
// file: the attributes of a node (public IP, backend data) are those in the file.
package file

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"time"

	"weft/lease"
)

// pollInterval is how often Watch reads the file. A new version takes effect after it was read
// twice unchanged, at least half of this apart, so that a partly written file is not used.
const pollInterval = time.Second

// Store implements lease.Store on a file.
type Store struct {
	path string
	log  *slog.Logger
	poll time.Duration

	mu         sync.Mutex // guards the fields below
	lastRead   []byte     // the file as last read
	since      time.Time  // when lastRead was first read
	current    []byte     // the version in force
	content    content    // of current
	revision   int64      // counts the versions in force; 0: none
	lastReport string     // last error of the file that Watch returned; empty: none since
}

// Open returns a Store for the file at path. The first call reads the file, which need not exist
// yet.
func Open(path string, log *slog.Logger) (*Store, error) {
	if path == "" {
		return nil, errors.New("lease file: no path given")
	}
	if log == nil {
		log = slog.Default()
	}
	return &Store{path: path, log: log, poll: pollInterval}, nil
}

// Close does nothing: the file is open only while it is read.
func (s *Store) Close() error { return nil }

// Network returns the network config of the file.
func (s *Store) Network(ctx context.Context) (lease.Network, error) {
	c, err := s.inForce()
	return c.network, err
}

// Claim finds this node in the file by its name, else by its public IP.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	c, err := s.inForce()
	if err != nil {
		return lease.Lease{}, err
	}
	for _, match := range []func(lease.Lease) bool{
		func(l lease.Lease) bool { return l.Node == r.Node },
		func(l lease.Lease) bool { return l.SameNode(r.Attrs) },
	} {
		for _, l := range c.leases {
			if !match(l) {
				continue
			}
			if !l.SameNode(r.Attrs) {
				s.log.Warn("public IP in lease file differs from this node's",
					"file", s.path, "node", l.Node, "listed", l.Public(), "local", r.Attrs.Public())
			}
			s.compareData("backendData", l, l.BackendData, r.Attrs.BackendData)
			s.compareData("backendV6Data", l, l.BackendV6Data, r.Attrs.BackendV6Data)
			if l.FastPath && !r.Attrs.FastPath {
				s.log.Warn("lease file announces a fast path that this node does not have: "+
					"other nodes' TCP may not reach it",
					"file", s.path, "node", l.Node, "key", "fastPath")
			}
			return l, nil
		}
	}
	return lease.Lease{}, fmt.Errorf("%w: %s lists neither node %q nor public IP %s",
		lease.ErrNoSubnet, s.path, r.Node, r.Attrs.Public())
}

// compareData logs the value that a key of this node's entry must have: other nodes read it there,
// and an operator cannot know it beforehand.
func (s *Store) compareData(key string, l lease.Lease, listed, local json.RawMessage) {
	var want, have any
	if err := json.Unmarshal(local, &want); err != nil || want == nil {
		return // the backend publishes nothing
	}
	if err := json.Unmarshal(listed, &have); err != nil || !reflect.DeepEqual(have, want) {
		s.log.Warn("lease file lacks the data of this node's backend, "+
			"without which other nodes cannot reach it: add it to the node's entry",
			"file", s.path, "node", l.Node, "key", key, "value", string(local))
	}
}

// Renew checks that the file still lists the lease and returns it with the attributes in the file.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	c, err := s.inForce()
	if err != nil {
		return lease.Lease{}, err
	}
	for _, listed := range c.leases {
		if listed.Node == l.Node && listed.SameSubnets(l) {
			return listed, nil
		}
	}
	return lease.Lease{}, fmt.Errorf("%w: %s does not assign %s %s to node %q",
		lease.ErrLost, s.path, l.Subnet, l.Subnet6, l.Node)
}

// Watch delivers the leases in the file at once and after each change, until ctx ends. It returns
// an error of the file once; while the same error lasts, the next call waits, so that a caller that
// pauses longer and longer between calls does not miss the correction.
func (s *Store) Watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	tick := time.NewTicker(s.poll)
	defer tick.Stop()
	for delivered := int64(0); ; {
		c, revision, err := s.load()
		if revision == 0 || s.isNew(err) {
			return err
		}
		if err == nil && revision != delivered {
			delivered = revision
			deliver(lease.Snapshot{Revision: revision, Leases: lease.NewSet(c.leases...)})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// isNew reports whether err differs from the last error passed to it.
func (s *Store) isNew(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.lastReport = ""
		return false
	}
	isNew := err.Error() != s.lastReport
	s.lastReport = err.Error()
	return isNew
}

// inForce returns the version in force. It fails only if there is none.
func (s *Store) inForce() (content, error) {
	c, revision, err := s.load()
	if revision > 0 {
		err = nil
	}
	return c, err
}

// load reads the file and returns the version in force and its revision, which is 0 if there is
// none. The error is that of the file as it is now.
func (s *Store) load() (content, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.refresh()
	if err != nil && s.revision > 0 {
		err = fmt.Errorf("%w; the previous version stays in force", err)
	}
	return s.content, s.revision, err
}

// refresh reads the file and puts it in force if it is valid and stable.
func (s *Store) refresh() error {
	b, err := os.ReadFile(s.path)
	if err != nil {
		return fmt.Errorf("lease file: %w", err)
	}
	if !bytes.Equal(b, s.lastRead) {
		s.lastRead, s.since = b, time.Now()
	}
	if s.revision != 0 && (bytes.Equal(b, s.current) || time.Since(s.since) < s.poll/2) {
		return nil
	}
	c, err := parse(b)
	if err != nil {
		return fmt.Errorf("lease file %s: %w", s.path, err)
	}
	s.current, s.content = b, c
	s.revision++
	return nil
}
