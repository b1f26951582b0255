package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/status"

	"weft/lease"
)

const (
	// leaseTTL is the TTL of a lease, as in flannel.
	leaseTTL = 24 * time.Hour
	// defaultOwnerTTL is the TTL of an owner key: for this long after its death, a daemon still
	// blocks other nodes from using its public IP. Keep-alives are sent every third of it; each
	// costs etcd about 0.6 ms of CPU time.
	defaultOwnerTTL = 30 * time.Second
	// retryInterval is the time from a failed keep-alive or check to the next ones, so that an
	// outage is noticed soon.
	retryInterval = 2 * time.Second
	// defaultCallTimeout bounds each request.
	defaultCallTimeout = 5 * time.Second
	// closeTimeout bounds the revoke at shutdown: a stop must not take seconds if etcd is down.
	closeTimeout = 500 * time.Millisecond
	// pingInterval and pingTimeout detect a silently dead connection. etcd rejects pings more
	// frequent than one per 5 s (embed's GRPCKeepAliveMinTime).
	pingInterval, pingTimeout = 10 * time.Second, 5 * time.Second
	// receiveWindow is how many bytes etcd may send before the client has read them: half a list of
	// 10,000 leases.
	receiveWindow = 1 << 20
	// redialMax bounds gRPC's delay between connection attempts, two minutes by default.
	redialMax = 3 * time.Second
	// defaultCheckInterval is the default of Config.CheckInterval.
	defaultCheckInterval = 20 * time.Second
)

// Store implements lease.Store on an etcd cluster. The caller closes it.
type Store struct {
	config Config
	client *clientv3.Client
	id     string // of this daemon, in owner keys

	keepAlives keepAlives

	// Fixed outside tests.
	ownerTTL, callTimeout time.Duration
	random                func(n int) int

	// ownersExpire are the first known expiries of owner keys of nodes with this host name. Only
	// Claim uses them.
	ownersExpire map[clientv3.LeaseID]time.Time

	mu   sync.Mutex // guards the fields below
	kept *keyspace  // the last list, for the next Watch; nil: none
	keys *weftKeys  // nil: not permitted by etcd
	own  *ownLease  // nil: none
	// pendingLease is the etcd lease that the own key is, or is about to be, attached to.
	pendingLease clientv3.LeaseID
	unreadable   map[string]bool // keys logged as unreadable
}

// ownLease is the lease held by this daemon. It is replaced, never modified.
type ownLease struct {
	key          string      // without <prefix>/subnets/
	attrs        lease.Attrs // as last written
	node         string
	leaseID      clientv3.LeaseID // etcd lease, as last written; none for a reservation
	mod          int64            // revision of the last write
	ownerLeaseID clientv3.LeaseID // etcd lease of the owner key; none without owner keys
}

// Open checks the config and returns at once; the first request connects.
func Open(c Config) (*Store, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	id, err := identity(c.Instance)
	if err != nil {
		return nil, err
	}
	client, err := newClient(c)
	if err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.CheckInterval <= 0 {
		c.CheckInterval = defaultCheckInterval
	}
	return &Store{
		config: c, client: client, id: id, unreadable: make(map[string]bool),
		keys: newWeftKeys(c.Prefix), ownersExpire: make(map[clientv3.LeaseID]time.Time),
		ownerTTL: defaultOwnerTTL, callTimeout: defaultCallTimeout, random: rand.IntN,
	}, nil
}

// newClient returns a client for the config with additional interceptors. It does not wait for a
// connection.
func newClient(c Config, extra ...grpc.UnaryClientInterceptor) (*clientv3.Client, error) {
	tls, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	redial := backoff.DefaultConfig
	redial.BaseDelay, redial.MaxDelay = 100*time.Millisecond, redialMax
	options := []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: redial, MinConnectTimeout: defaultCallTimeout,
		}),
		// etcd is a service of the cluster, so there is no proxy. With windows of a fixed size, the
		// client sends no pings to measure the connection, one per change otherwise.
		grpc.WithContextDialer(dial),
		grpc.WithStaticStreamWindowSize(receiveWindow), grpc.WithStaticConnWindowSize(receiveWindow),
	}
	if c.Username != "" && c.Password != "" {
		l := newLogin(c.Username, c.Password)
		options = append(options, grpc.WithChainUnaryInterceptor(l.unary),
			grpc.WithChainStreamInterceptor(l.stream))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: tls,
		DialKeepAliveTime: pingInterval, DialKeepAliveTimeout: pingTimeout,
		Logger: zap.NewNop(), // errors are returned, and logged by the caller
		DialOptions: append(options,
			grpc.WithChainUnaryInterceptor(append(extra, recordCause)...)),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: endpoints %s: %w", strings.Join(c.Endpoints, ", "), err)
	}
	return client, nil
}

// Close revokes the owner key, if etcd answers quickly, and disconnects. The lease and its node
// record remain for the next start. Calls in progress fail.
func (s *Store) Close() error {
	if own := s.getOwn(); own != nil && own.ownerLeaseID != clientv3.NoLease {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if _, err := s.client.Revoke(ctx, own.ownerLeaseID); err != nil {
			s.config.Log.Debug("owner key not revoked, left to expire", "lease", own.key,
				"err", err)
		}
	}
	s.keepAlives.end()
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("etcd: close: %w", err)
	}
	return nil
}

// Network reads <prefix>/config.
func (s *Store) Network(ctx context.Context) (lease.Network, error) {
	key := path.Join(s.config.Prefix, "config")
	var got *clientv3.GetResponse
	err := s.call(ctx, "read network config",
		func(ctx context.Context, c *clientv3.Client) (err error) {
			got, err = c.Get(ctx, key)
			return err
		})
	if err != nil {
		return lease.Network{}, err
	}
	if len(got.Kvs) == 0 {
		return lease.Network{}, s.missingConfig(ctx, key)
	}
	n, err := lease.ParseNetwork(got.Kvs[0].Value)
	if err == nil {
		err = n.Check()
	}
	if err != nil {
		return lease.Network{}, fmt.Errorf("etcd: %s: %w", key, err)
	}
	return n, nil
}

// missingConfig returns the error for a missing config key. It names a key beside it that may hold
// the config.
func (s *Store) missingConfig(ctx context.Context, key string) error {
	otherSlash := "/" + key
	if rest, ok := strings.CutPrefix(key, "/"); ok {
		otherSlash = rest
	}
	candidates := []string{path.Dir(key), otherSlash, key + "/"}
	var t transaction
	for _, c := range candidates {
		t.then = append(t.then, clientv3.OpGet(c, clientv3.WithCountOnly()))
	}
	hint := "write it with version 3 of etcd's API (ETCDCTL_API=3), keys of version 2 are not visible"
	// The role may not permit these keys, so an error just leaves the general hint.
	if got, err := s.txn(ctx, "find network config", t); err == nil {
		for i, r := range got.Responses {
			if r.GetResponseRange().Count > 0 {
				hint = fmt.Sprintf("a key %s exists, but the config belongs at %s", candidates[i], key)
				break
			}
		}
	}
	return fmt.Errorf("etcd: no network config at %s: %s", key, hint)
}

// subnets returns the prefix of all lease keys. Its final slash excludes <prefix>/subnets-old.
func (s *Store) subnets() string { return path.Join(s.config.Prefix, "subnets") + "/" }

func (s *Store) subnetKey(name string) string { return s.subnets() + name }

// call runs one request with a timeout. operation names it in errors.
func (s *Store) call(
	ctx context.Context, operation string, request func(context.Context, *clientv3.Client) error,
) error {
	var last cause
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, causeKey{}, &last), s.callTimeout)
	defer cancel()
	err := request(ctx, s.client)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		endpoints := strings.Join(s.config.Endpoints, ", ")
		return fmt.Errorf("etcd: %s: no answer from %s: %w%s", operation, endpoints, err,
			last.text())
	}
	return fmt.Errorf("etcd: %s: %w", operation, err)
}

// cause holds the gRPC error of a request that timed out (connection refused, untrusted
// certificate): etcd's client returns only the timeout. It is stored in the request's context under
// causeKey.
type cause struct {
	mu   sync.Mutex
	last string
}

type causeKey struct{}

// recordCause is the innermost gRPC interceptor. It stores errors in the cause of the context.
func recordCause(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	next grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	err := next(ctx, method, req, reply, cc, opts...)
	if c, ok := ctx.Value(causeKey{}).(*cause); ok && err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last = status.Convert(err).Message()
	}
	return err
}

// text returns the cause in parentheses; empty if it is just the timeout. It removes the local port
// so that repeated errors have the same text.
func (c *cause) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == "" || c.last == context.DeadlineExceeded.Error() {
		return ""
	}
	return " (" + regexp.MustCompile(`:\d+->`).ReplaceAllString(c.last, "->") + ")"
}

// txn runs one transaction.
func (s *Store) txn(
	ctx context.Context, operation string, t transaction,
) (*clientv3.TxnResponse, error) {
	var got *clientv3.TxnResponse
	err := s.call(ctx, operation, func(ctx context.Context, c *clientv3.Client) (err error) {
		got, err = c.Txn(ctx).If(t.when...).Then(t.then...).Else(t.otherwise...).Commit()
		return err
	})
	return got, err
}

// transaction is an etcd transaction: it runs then if all comparisons in when hold, else otherwise.
type transaction struct {
	when            []clientv3.Cmp
	then, otherwise []clientv3.Op
}

// grant creates an etcd lease.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	var id clientv3.LeaseID
	err := s.call(ctx, "grant etcd lease", func(ctx context.Context, c *clientv3.Client) error {
		g, err := c.Grant(ctx, int64(ttl/time.Second))
		if err == nil {
			id = g.ID
		}
		return err
	})
	return id, err
}

// revokeEmpty revokes an etcd lease that has no keys left; an operator may have attached other keys
// to it. Errors are only logged because the etcd lease expires anyway.
func (s *Store) revokeEmpty(ctx context.Context, id clientv3.LeaseID) {
	if id == clientv3.NoLease {
		return
	}
	err := s.call(ctx, "revoke etcd lease", func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil || got.TTL <= 0 || len(got.Keys) > 0 {
			return err
		}
		_, err = c.Revoke(ctx, id)
		return err
	})
	if err != nil {
		s.config.Log.Debug("etcd lease not revoked, left to expire", "err", err)
	}
}

// logUnreadable logs unreadable entries, each key once while it exists.
func (s *Store) logUnreadable(ks *keyspace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.unreadable {
		if ks.unreadable[key] == nil {
			delete(s.unreadable, key)
		}
	}
	for key, err := range ks.unreadable {
		if !s.unreadable[key] {
			s.unreadable[key] = true
			s.config.Log.Warn("ignoring unreadable lease, its addresses stay reserved",
				"key", s.subnetKey(key), "err", err)
		}
	}
}

func (s *Store) getOwn() *ownLease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own
}

func (s *Store) setOwn(own *ownLease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = own
}

// setPendingLease records the etcd lease that the own key is about to be attached to: the watch may
// deliver the change before the request returns.
func (s *Store) setPendingLease(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pendingLease = id
}

// ownMoved reports whether another client has attached the own key to another etcd lease since this
// daemon last wrote it.
func (s *Store) ownMoved(ks *keyspace) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		return false
	}
	e := ks.entries[s.own.key]
	return e.mod > s.own.mod && e.leaseID != clientv3.NoLease &&
		e.leaseID != s.own.leaseID && e.leaseID != s.pendingLease
}

// snapshot returns the snapshot that Watch delivers.
func (s *Store) snapshot(ks *keyspace) lease.Snapshot {
	snapshot := ks.snapshot()
	snapshot.RenewNow = s.ownMoved(ks)
	return snapshot
}

// replaceOwn replaces the own lease unless it is no longer old: Watch and Renew run concurrently.
func (s *Store) replaceOwn(old, now *ownLease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == old {
		s.own = now
	}
}
