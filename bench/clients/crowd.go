package clients

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"weft/lease"
	"weft/lease/etcd"
)

// crowd are the clients. Its methods are safe for concurrent use.
type crowd struct {
	endpoint string
	network  lease.Network
	quiet    *slog.Logger
	ended    sync.WaitGroup
	clients  []*client
}

// client is the store client of one daemon.
type client struct {
	n      int
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex // guards the fields below
	started time.Time
	claimed time.Time // when the lease was first held; zero: not yet
	state   lease.State
	moved   bool // the subnet has changed
	err     error
}

// attrs are the attributes of client n.
func attrs(n int) lease.Attrs {
	return lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{172, 30, byte(n >> 8), byte(n)})}
}

// start starts a client.
func (c *crowd) start(ctx context.Context, k *client) error {
	store, err := etcd.Open(etcd.Config{
		Endpoints: []string{c.endpoint}, Prefix: prefix, Instance: fmt.Sprint(k.n), Log: c.quiet,
	})
	if err != nil {
		return err
	}
	ctx, k.cancel = context.WithCancel(ctx)
	k.done = make(chan struct{})
	k.mu.Lock()
	k.started, k.claimed = time.Now(), time.Time{}
	k.mu.Unlock()
	m := lease.NewManager(store, lease.Request{
		Network: c.network, Attrs: attrs(k.n), Node: fmt.Sprint("client", k.n),
	}, lease.Options{Log: c.quiet})
	c.ended.Go(func() {
		defer close(k.done)
		err := m.Run(ctx, k.report)
		if closeErr := store.Close(); err == nil {
			err = closeErr
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.err = err
	})
	return nil
}

// stop stops a client as a daemon that ends does.
func (k *client) stop() {
	k.cancel()
	<-k.done
}

// report takes a state from the manager.
func (k *client) report(s lease.State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state.Self.Subnet.IsValid() && s.Held && s.Self.Subnet != k.state.Self.Subnet {
		k.moved = true
	}
	if s.Held && k.claimed.IsZero() {
		k.claimed = time.Now()
	}
	if !s.Held && !s.Self.Subnet.IsValid() {
		s.Self = k.state.Self // of the client before its restart
	}
	k.state = s
}

// isComplete reports whether the client holds its lease and sees a number of leases.
func (k *client) isComplete(leases int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.claimed.IsZero() && k.state.Held && k.state.Connected && k.state.All.Len() == leases
}

// spread calls f for each client at a random time within d.
func (c *crowd) spread(ctx context.Context, d time.Duration, f func(*client) error) error {
	var all sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, k := range c.clients {
		all.Go(func() {
			err := sleep(ctx, rand.N(d+1))
			if err == nil {
				err = f(k)
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
			}
		})
	}
	all.Wait()
	return first
}

// awaitAll waits until a condition holds for all clients.
func (c *crowd) awaitAll(ctx context.Context, limit time.Duration, ok func(*client) bool) error {
	end := time.Now().Add(limit)
	waiting := c.clients
	for {
		var left []*client
		for _, k := range waiting {
			if !ok(k) {
				left = append(left, k)
			}
		}
		if waiting = left; len(waiting) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d clients are not complete after %s: %s",
				len(waiting), len(c.clients), limit, waiting[0].describe())
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// describe returns the state of a client for an error.
func (k *client) describe() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fmt.Sprintf("client %d: held %t, connected %t, %d leases, error %v",
		k.n, k.state.Held, k.state.Connected, k.state.All.Len(), k.state.Err)
}

// claimTimes returns the times from the start of each client to its lease.
func (c *crowd) claimTimes() []time.Duration {
	var times []time.Duration
	for _, k := range c.clients {
		k.mu.Lock()
		times = append(times, k.claimed.Sub(k.started))
		k.mu.Unlock()
	}
	return times
}

// moved counts the clients whose subnet has changed.
func (c *crowd) moved() int {
	n := 0
	for _, k := range c.clients {
		k.mu.Lock()
		if k.moved {
			n++
		}
		k.mu.Unlock()
	}
	return n
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
