package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// maxFailures is how many requests beside the stream may fail in a row before Watch gives up: one may be bad luck.
const maxFailures = 2

// Watch lists the leases, delivers, and delivers again after each change, until ctx ends or the list is in doubt. In
// the same loop it keeps the owner key alive and compares a fingerprint of the server's data with the list.
func (s *Store) Watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	err := s.watch(ctx, deliver)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Store) watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	v, err := s.list(ctx)
	if err != nil {
		return err
	}
	deliver(s.snapshot(v))
	stream, cancel, err := s.open(ctx, v.revision+1)
	if err != nil {
		return err
	}
	defer cancel()
	check := time.NewTimer(jitter(s.config.CheckInterval))
	defer check.Stop()
	beat := time.NewTicker(s.ownerTTL / 3)
	defer beat.Stop()
	var g guard
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case r, ok := <-stream:
			if !ok {
				return errors.New("etcd: watch: the stream ended")
			}
			if err := r.Err(); err != nil {
				return fmt.Errorf("etcd: watch: %w", err)
			}
			if v.apply(r) || s.moved(v) {
				deliver(s.snapshot(v))
			}
			s.complain(v)
			continue
		case <-beat.C:
			err = s.beat(ctx)
		case <-check.C:
			err = s.check(ctx, v, &g)
			check.Reset(jitter(s.config.CheckInterval))
		}
		failures++
		if err == nil {
			failures = 0
		} else if failures >= maxFailures || errors.Is(err, errOwnerGone) || errors.Is(err, errDoubt) {
			return err
		}
	}
}

// list reads all leases, and sees to the owner key of the one that we hold.
func (s *Store) list(ctx context.Context) (*view, error) {
	return asAllowed(ctx, s, func(k *ownerKeys) (*view, error) { return s.listWith(ctx, k) })
}

func (s *Store) listWith(ctx context.Context, k *ownerKeys) (*view, error) {
	got, err := s.txn(ctx, s.listing(), transaction{then: s.listOps(k)})
	if err != nil {
		return nil, err
	}
	v, owners := s.listed(k, got)
	s.complain(v)
	h := s.holding()
	if h == nil {
		return v, nil
	}
	e, listed := v.entries[h.key]
	if !listed || !e.lease.SameNode(h.attrs) {
		return v, nil // lost: the manager sees it in the list and claims again
	}
	return v, s.own(ctx, k, h, e, owners[h.key])
}

// open starts the stream of changes from the given revision. cancel ends it.
func (s *Store) open(ctx context.Context, from int64) (clientv3.WatchChan, context.CancelFunc, error) {
	dial, done := context.WithTimeout(ctx, s.callTimeout)
	defer done()
	c, err := s.connect(dial)
	if err != nil {
		return nil, nil, fmt.Errorf("etcd: watch: %w", err)
	}
	// A member without a leader must not leave us with an old list, hence WithRequireLeader. Client.Watch returns
	// only when the server has answered, which it may never do.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	patience := time.AfterFunc(s.callTimeout, cancel)
	stream := c.Watch(ctx, s.subnets(), clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithProgressNotify())
	if !patience.Stop() {
		cancel()
		return nil, nil, fmt.Errorf("etcd: watch: no answer in %s", s.callTimeout)
	}
	return stream, cancel, nil
}

// errDoubt marks a check that found the view wrong, unlike one that got no answer.
var errDoubt = errors.New("the list is in doubt")

// check compares what the server holds with v: by a count of the keys, and by their newest change only if something was
// written since v was known to be right, which may be no lease.
func (s *Store) check(ctx context.Context, v *view, g *guard) error {
	server, err := s.fingerprint(ctx, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if v.fingerprint().same(server) {
		*g = guard{}
		return nil
	}
	server, err = s.fingerprint(ctx, clientv3.WithKeysOnly(), clientv3.WithLimit(1),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	if err != nil {
		return err
	}
	if err := g.judge(v.fingerprint(), server); err != nil {
		return fmt.Errorf("%w: %w", errDoubt, err)
	}
	if g.mismatches == 0 {
		v.revision = server.revision
	}
	return nil
}

// fingerprint asks for what the options leave of all keys.
func (s *Store) fingerprint(ctx context.Context, opts ...clientv3.OpOption) (fingerprint, error) {
	var got *clientv3.GetResponse
	err := s.call(ctx, "check leases", func(ctx context.Context, c *clientv3.Client) (err error) {
		got, err = c.Get(ctx, s.subnets(), append(opts, clientv3.WithPrefix())...)
		return err
	})
	if err != nil {
		return fingerprint{}, err
	}
	f := fingerprint{cluster: got.Header.ClusterId, revision: got.Header.Revision, count: got.Count}
	if len(got.Kvs) > 0 {
		f.newest = got.Kvs[0].ModRevision
	}
	return f, nil
}

// jitter is d and up to a quarter more or less, so that nodes that lost etcd together do not ask in step for ever.
func jitter(d time.Duration) time.Duration { return d - d/4 + rand.N(d/2) }
