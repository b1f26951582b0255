package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"weft/lease"
)

// Watch delivers the leases of all nodes. The reflector continues when Watch returns: the next call
// neither lists all nodes again nor misses a change.
func (s *Store) Watch(ctx context.Context, deliver func(lease.Snapshot)) error {
	if n := s.cache.currentNetwork(); !n.EnableIPv4 && !n.EnableIPv6 {
		n, err := s.Network(ctx)
		if err != nil {
			return err
		}
		s.cache.setNetwork(n)
	}
	s.startReflector.Do(func() { s.running.Go(func() { s.reflector().RunWithContext(s.ctx) }) })
	var last lease.Snapshot
	for first := true; ctx.Err() == nil; {
		now := s.cache.current()
		if now.err != nil {
			return now.err
		}
		same := len(lease.Changes(last.Leases, now.leases.Leases)) == 0
		if now.synced && (first || !same) {
			first, last = false, now.leases
			deliver(last)
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// reflector returns the reflector that updates the cache.
func (s *Store) reflector() *cache.Reflector {
	list := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		nodes, err := s.nodes.List(ctx, o)
		s.recordCall(ctx, err)
		return nodes, err
	}
	watch := func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		w, err := s.nodes.Watch(ctx, o)
		s.recordCall(ctx, err)
		return w, err
	}
	calls := &cache.ListWatch{ListWithContextFunc: list, WatchFuncWithContext: watch}
	listWatcher := cache.ToListWatcherWithWatchListSemantics(calls, s.nodes)
	return cache.NewReflectorWithOptions(listWatcher, &corev1.Node{}, s.cache,
		cache.ReflectorOptions{Name: "nodes", Backoff: reflectorBackoff()})
}

// reflectorBackoff returns client-go's backoff with a maximum delay of 10 s (5 s plus jitter)
// instead of 60 s: until the API server answers, this node sends to outdated addresses.
func reflectorBackoff() *wait.Backoff {
	return &wait.Backoff{
		Duration: 500 * time.Millisecond, Cap: 5 * time.Second, Factor: 2, Jitter: 1, Steps: 10,
	}
}

// recordCall records the result of a call in the cache, unless this daemon cancelled it.
func (s *Store) recordCall(ctx context.Context, err error) {
	if ctx.Err() == nil {
		s.cache.recordCall(err)
	}
}
