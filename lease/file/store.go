// Package file is the lease store without a store: a YAML or JSON file that lists all nodes and is the same on each.
//
//	network:
//	  Network: 10.5.0.0/16
//	  Backend: {Type: udp}
//	nodes:
//	  - {name: a, subnet: 10.5.1.0/24, publicIP: 192.0.2.1}
//	  - {name: b, subnet: 10.5.2.0/24, publicIP: 192.0.2.2}
//
// network holds the keys of the network config. A change of the file is seen within two seconds; a version that is wrong
// is logged, and the one before it stays in force. Nothing is ever written: what a node tells about itself (public
// IP, backend data) is what the file says of it.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"weft/lease"
)

// pollEvery is how often Watch reads the file. A new version counts when it was read the same twice with at least half
// of that between, so that one that is just being written does not.
const pollEvery = time.Second

// Store is a file as a lease.Store.
type Store struct {
	path string
	log  *slog.Logger
	poll time.Duration

	mu       sync.Mutex // guards what is below
	read     []byte     // the file as last read
	since    time.Time  // when read was first seen
	current  []byte     // the version in force
	content  content    // of current
	revision int64      // counts the versions in force; 0: none yet
	trouble  string     // what was logged last about the file
}

// Open makes a Store of the file at path. It is first read by the first call, and may come into being later.
func Open(path string, log *slog.Logger) (*Store, error) {
	if path == "" {
		return nil, errors.New("lease file: no path given")
	}
	if log == nil {
		log = slog.Default()
	}
	return &Store{path: path, log: log, poll: pollEvery}, nil
}

// Close does nothing: the file is open only while it is read.
func (s *Store) Close() error { return nil }

// Network is the file's network.
func (s *Store) Network(ctx context.Context) (lease.Network, error) {
	c, _, err := s.load()
	return c.network, err
}

// Claim finds this node in the file: by its name, else by its public IP.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	c, _, err := s.load()
	if err != nil {
		return lease.Lease{}, err
	}
	for _, same := range []func(lease.Lease) bool{
		func(l lease.Lease) bool { return l.Node == r.Node },
		func(l lease.Lease) bool { return l.SameNode(r.Attrs) },
	} {
		for _, l := range c.leases {
			if !same(l) {
				continue
			}
			if !l.SameNode(r.Attrs) {
				s.log.Warn("the lease file gives this node another public IP than its interface has",
					"file", s.path, "node", l.Node, "listed", l.Public(), "here", r.Attrs.Public())
			}
			return l, nil
		}
	}
	return lease.Lease{}, fmt.Errorf("%w: %s lists neither node %q nor public IP %s", lease.ErrNoSubnet, s.path, r.Node, r.Attrs.Public())
}

// Renew looks whether the file still says the same of this node. It returns the attributes that the file has.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	c, _, err := s.load()
	if err != nil {
		return lease.Lease{}, err
	}
	for _, listed := range c.leases {
		if listed.Node == l.Node && listed.SameSubnets(l) {
			return listed, nil
		}
	}
	return lease.Lease{}, fmt.Errorf("%w: %s does not give %s %s to node %q", lease.ErrLost, s.path, l.Subnet, l.Subnet6, l.Node)
}

// Watch delivers the file's nodes, and again after each change, until ctx ends.
func (s *Store) Watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	c, revision, err := s.load()
	if err != nil {
		return err
	}
	deliver(lease.Snapshot{Revision: revision, Leases: c.leases})
	tick := time.NewTicker(s.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c, now, err := s.load()
		if err != nil {
			return err
		}
		if now != revision {
			revision = now
			deliver(lease.Snapshot{Revision: revision, Leases: c.leases})
		}
	}
}

// load reads the file and returns the version in force with its number. It fails only if there is none yet.
func (s *Store) load() (content, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.refresh()
	if err != nil && s.revision == 0 {
		return content{}, 0, err
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != s.trouble {
		s.log.Error("the lease file is wrong, its last good version stays in force", "err", err)
	}
	s.trouble = text
	return s.content, s.revision, nil
}

// refresh reads the file and puts it in force if it is right and no longer being written.
func (s *Store) refresh() error {
	b, err := os.ReadFile(s.path)
	if err != nil {
		return fmt.Errorf("lease file: %w", err)
	}
	if !bytes.Equal(b, s.read) {
		s.read, s.since = b, time.Now()
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
