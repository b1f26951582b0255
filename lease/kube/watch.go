package kube

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"weft/lease"
)

// Watch delivers the leases of all nodes. The reflector behind it goes on when Watch returns, so that the next one
// neither lists all nodes again nor misses anything: what ended was only the certainty.
func (s *Store) Watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	if n := s.roster.currentNetwork(); !n.EnableIPv4 && !n.EnableIPv6 {
		n, err := s.Network(ctx)
		if err != nil {
			return err
		}
		s.roster.setNetwork(n)
	}
	s.follow.Do(func() { s.running.Go(func() { s.reflector().RunWithContext(s.ctx) }) })
	var last lease.Snapshot
	for first := true; ctx.Err() == nil; {
		now := s.roster.look()
		if now.err != nil {
			return now.err
		}
		if now.synced && (first || !slices.EqualFunc(now.snapshot.Leases, last.Leases, lease.Lease.Equal)) {
			first, last = false, now.snapshot
			deliver(last)
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// reflector keeps the roster as the API server has it.
func (s *Store) reflector() *cache.Reflector {
	calls := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := s.nodes.List(ctx, o)
			s.heard(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := s.nodes.Watch(ctx, o)
			s.heard(ctx, err)
			return w, err
		},
	}
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(calls, s.nodes), &corev1.Node{}, s.roster,
		cache.ReflectorOptions{Name: "nodes", Backoff: retries()})
}

// retries are the pauses between tries to reach the API server: client-go's, but that the longest, 60 s, is 10 s, since
// until then this node sends to where others no longer are.
func retries() *wait.Backoff {
	return &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 5 * time.Second}
}

// heard tells the roster how a call went, unless it was us who ended it.
func (s *Store) heard(ctx context.Context, err error) {
	if ctx.Err() == nil {
		s.roster.answered(err)
	}
}
