package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// keepAlives extends etcd leases by one stream, which it opens when needed. etcd's client opens a
// stream per call, which costs etcd more than the call, or sends at intervals of its own without
// reporting an outage. The zero keepAlives is ready to use, and safe for concurrent use.
type keepAlives struct {
	mu     sync.Mutex // guards the fields below
	stream etcdserverpb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc // ends stream
}

// keepAlivePause is the time between two attempts.
const keepAlivePause = 100 * time.Millisecond

// send extends an etcd lease and returns its TTL. It tries until ctx ends, unless etcd refuses.
func (k *keepAlives) send(
	ctx context.Context, c *clientv3.Client, id clientv3.LeaseID,
) (time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		reply, err := k.try(ctx, c, id)
		switch {
		case err == nil && reply.TTL <= 0:
			return 0, rpctypes.ErrLeaseNotFound
		case err == nil:
			return time.Duration(reply.TTL) * time.Second, nil
		}
		k.close()
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
			return 0, rpctypes.Error(err)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(keepAlivePause):
		}
	}
}

// try sends one request by the stream and receives its response.
func (k *keepAlives) try(
	ctx context.Context, c *clientv3.Client, id clientv3.LeaseID,
) (*etcdserverpb.LeaseKeepAliveResponse, error) {
	fresh := k.stream == nil
	var streamCtx context.Context
	if fresh {
		streamCtx, k.cancel = context.WithCancel(context.Background())
	}
	stop := context.AfterFunc(ctx, k.cancel)
	defer stop()
	if fresh {
		var err error
		k.stream, err = etcdserverpb.NewLeaseClient(c.ActiveConnection()).
			LeaseKeepAlive(streamCtx, grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
	}
	// If the stream has ended, Send returns io.EOF and Recv the reason.
	_ = k.stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)})
	return k.stream.Recv()
}

// close ends the stream.
func (k *keepAlives) close() {
	if k.cancel != nil {
		k.cancel()
	}
	k.stream, k.cancel = nil, nil
}

// end is close for other goroutines than the sender's.
func (k *keepAlives) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.close()
}

// extend renews the etcd lease of the own lease without writing its key, so that no node has a
// change to handle. It reports whether the etcd lease exists and now lasts for 24 h.
func (s *Store) extend(ctx context.Context, id clientv3.LeaseID) (bool, error) {
	var ttl time.Duration
	err := s.call(ctx, "extend etcd lease",
		func(ctx context.Context, c *clientv3.Client) (err error) {
			ttl, err = s.keepAlives.send(ctx, c, id)
			return err
		})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, nil
	}
	return err == nil && ttl >= leaseTTL, err
}
