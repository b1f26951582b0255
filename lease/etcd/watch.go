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

// maxFailures is the number of consecutive failed requests beside the stream after which Watch
// returns. A single failure may be transient.
const maxFailures = 2

// Watch lists the leases, delivers them, and delivers them again after each change, until ctx ends
// or the list may be stale. The same loop keeps the owner key alive and compares a fingerprint of
// the server's data with the list.
func (s *Store) Watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	err := s.watch(ctx, deliver)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Store) watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	ks, err := s.resume(ctx)
	if ks == nil && err == nil {
		ks, err = s.list(ctx)
	}
	if err != nil {
		return err
	}
	deliver(s.snapshot(ks))
	stream, cancel, err := s.openStream(ctx, ks)
	if err != nil {
		s.keep(ks)
		return err
	}
	defer cancel()
	return s.follow(ctx, stream, ks, deliver)
}

// follow keeps ks up to date from the stream and sends the periodic requests. It returns an error
// if the stream ends, if ks is stale, or if too many requests fail.
func (s *Store) follow(
	ctx context.Context, stream clientv3.WatchChan, ks *keyspace, deliver func(lease.Snapshot),
) error {
	check := time.NewTimer(jitter(s.config.CheckInterval))
	defer check.Stop()
	keepAlive := time.NewTimer(jitter(s.ownerTTL / 3))
	defer keepAlive.Stop()
	var d staleDetector
	failures := 0
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case r, ok := <-stream:
			if err := s.receive(r, ok, ks, deliver); err != nil {
				return err
			}
			continue
		case <-keepAlive.C:
			keepAlive.Reset(jitter(s.ownerTTL / 3))
			if !s.hasOwnerKey() {
				continue // nothing to ask etcd
			}
			err = s.keepAlive(ctx)
		case <-check.C:
			err = s.checkStale(ctx, ks, &d)
			check.Reset(jitter(s.config.CheckInterval))
		}
		if err == nil {
			failures = 0
			continue
		}
		failures++
		switch {
		case errors.Is(err, errStale):
			return err
		case failures >= maxFailures || errors.Is(err, errOwnerGone):
			s.keep(ks)
			return err
		}
		keepAlive.Reset(min(retryInterval, s.ownerTTL/3))
		check.Reset(min(retryInterval, s.config.CheckInterval))
	}
}

// receive applies a response of the stream to ks and delivers the leases if they have changed. ok
// is false if the stream has ended.
func (s *Store) receive(
	r clientv3.WatchResponse, ok bool, ks *keyspace, deliver func(lease.Snapshot),
) error {
	if err := streamError(r, ok); err != nil {
		return err
	}
	if ks.apply(r) || s.ownMoved(ks) {
		deliver(s.snapshot(ks))
	}
	s.logUnreadable(ks)
	return nil
}

// streamError returns why a stream cannot go on; nil if it can. ok is false if it has ended.
func streamError(r clientv3.WatchResponse, ok bool) error {
	if !ok {
		return errors.New("etcd: watch: stream ended")
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("etcd: watch: %w", err)
	}
	return nil
}

// keep keeps ks for the next Watch.
func (s *Store) keep(ks *keyspace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = ks
}

// takeKept returns the kept list, which is not kept any longer.
func (s *Store) takeKept() *keyspace {
	s.mu.Lock()
	defer s.mu.Unlock()
	ks := s.kept
	s.kept = nil
	return ks
}

// resume returns the list of the last Claim or Watch if the stream can continue it, so that the
// return of etcd does not make all nodes list all leases; nil otherwise. Like list, it ensures that
// the owner key of the own lease exists.
//
// The own key shows that etcd still has the data that ks is from: no other data has it with the
// same etcd lease at the same revision. Whatever that misses, the checks of the watch find.
func (s *Store) resume(ctx context.Context) (*keyspace, error) {
	ks, own, k := s.takeKept(), s.getOwn(), s.weftKeys()
	if ks == nil || own == nil || ks.nodes != k.nodesPrefix() {
		return nil, nil
	}
	ops := append([]clientv3.Op{clientv3.OpGet(s.subnetKey(own.key))}, k.getPair(own.key)...)
	got, err := s.txn(ctx, "read own lease "+s.subnetKey(own.key), transaction{then: ops})
	if err != nil {
		s.keep(ks)
		return nil, err
	}
	kvs := got.Responses[0].GetResponseRange().Kvs
	if got.Header.ClusterId != ks.cluster || got.Header.Revision < ks.revision ||
		len(kvs) == 0 || kvs[0].ModRevision != own.mod ||
		clientv3.LeaseID(kvs[0].Lease) != own.leaseID {
		return nil, nil
	}
	o, _ := k.parsePair(got.Responses[1:])
	return ks, s.ensureOwnerKey(ctx, k, own, decodeEntry(own.key, kvs[0]), o)
}

// list reads all leases and ensures that the owner key of the own lease exists.
func (s *Store) list(ctx context.Context) (*keyspace, error) {
	return withWeftKeys(ctx, s, func(k *weftKeys) (*keyspace, error) {
		return s.listUsing(ctx, k)
	})
}

func (s *Store) listUsing(ctx context.Context, k *weftKeys) (*keyspace, error) {
	own := s.getOwn()
	t := transaction{then: s.listOps(k)}
	if own != nil {
		t.then = append(t.then, k.getOwners(own.key)...)
	}
	got, err := s.txn(ctx, s.listName(), t)
	if err != nil {
		return nil, err
	}
	ks := s.parseList(k, got.Header, got.Responses[0])
	if own == nil {
		return ks, nil
	}
	e, listed := ks.entries[own.key]
	if !listed || !e.lease.SameNode(own.attrs) {
		return ks, nil // lost: the manager notices it in the list and claims again
	}
	owners := k.parseOwners(got.Responses[1:])
	return ks, s.ensureOwnerKey(ctx, k, own, e, owners[own.key])
}

// openStream starts the stream of changes since ks. cancel ends it.
func (s *Store) openStream(
	ctx context.Context, ks *keyspace,
) (stream clientv3.WatchChan, cancel context.CancelFunc, err error) {
	// WithRequireLeader: a member without a leader would serve a stale list. Client.Watch returns
	// only after the server has responded, which may never happen.
	ctx, cancel = context.WithCancel(clientv3.WithRequireLeader(ctx))
	timeout := time.AfterFunc(s.callTimeout, cancel)
	stream = s.client.Watch(ctx, ks.subnets, clientv3.WithRange(ks.end),
		clientv3.WithRev(ks.revision+1), clientv3.WithProgressNotify())
	if !timeout.Stop() {
		cancel()
		return nil, nil, fmt.Errorf("etcd: watch: no answer within %s", s.callTimeout)
	}
	return stream, cancel, nil
}

// errStale marks a check that found the keyspace stale, unlike one that failed.
var errStale = errors.New("lease list is stale")

// checkStale compares the server's data with ks: by the number of keys, and by their newest change
// only if etcd was written to since ks was last known to be correct; the write may concern other
// keys.
func (s *Store) checkStale(ctx context.Context, ks *keyspace, d *staleDetector) error {
	server, err := s.fingerprint(ctx, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if ks.fingerprint().unwritten(server) {
		*d = staleDetector{}
		return nil
	}
	server, err = s.fingerprint(ctx, clientv3.WithKeysOnly(), clientv3.WithLimit(1),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	if err != nil {
		return err
	}
	if err := d.check(ks.completeFingerprint(), server); err != nil {
		return fmt.Errorf("%w: %w", errStale, err)
	}
	if d.mismatches == 0 {
		ks.revision = server.revision
	}
	return nil
}

// fingerprint requests the fingerprint of <prefix>/subnets/. Without the newest key in the
// response, newest is 0.
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

// jitter returns d plus or minus up to a quarter, to desynchronise nodes that lost etcd at the same
// time.
func jitter(d time.Duration) time.Duration { return d - d/4 + rand.N(d/2) }
