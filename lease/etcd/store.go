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
	// leaseTTL is how long a lease lives without renewal: flannel's 24 hours.
	leaseTTL = 24 * time.Hour
	// defaultOwnerTTL is how long a dead daemon keeps its public IP from another node. A third of it is the beat.
	defaultOwnerTTL = 15 * time.Second
	// defaultCallTimeout bounds every single request.
	defaultCallTimeout = 5 * time.Second
	// closeTimeout bounds the farewell to an etcd that may be gone: a stop must not take seconds.
	closeTimeout = 500 * time.Millisecond
	// pingEvery and pingTimeout find a connection that is dead without a word. etcd refuses pings more frequent than
	// one in 5 s (embed's GRPCKeepAliveMinTime).
	pingEvery, pingTimeout = 10 * time.Second, 5 * time.Second
	// redialMax bounds grpc's pause between attempts to connect. Its own default grows to two minutes.
	redialMax = 3 * time.Second
	// checkEvery is the default of Config.CheckInterval.
	checkEvery = 20 * time.Second
)

// Store is an etcd cluster as a lease.Store. Close ends it.
type Store struct {
	config Config
	dialer clientv3.Config
	id     string // of this daemon, in owner keys
	stop   context.CancelFunc

	// Constants but for tests.
	ownerTTL, callTimeout time.Duration
	random                func(n int) int

	dialing sync.Mutex // held while the client is made, which may take a callTimeout
	mu      sync.Mutex // guards what is below
	client  *clientv3.Client
	owners  *ownerKeys // nil: etcd does not allow us any
	held    *held
	granted clientv3.LeaseID // etcd lease on which the key is, or is just being, written
	odd     map[string]bool  // keys that were complained about
}

// held is what the store remembers about the lease that this daemon holds. It is replaced, never changed.
type held struct {
	key   string      // the part after subnets/
	attrs lease.Attrs // as last written
	node  string
	owner clientv3.LeaseID // etcd lease of the owner key; none without owner keys
	grant clientv3.LeaseID // etcd lease of the key, as last written; none if it is a reservation
	mod   int64            // revision of that write
}

// Open checks the config and returns at once; the first request connects.
func Open(c Config) (*Store, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	tls, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	id, err := identity(c.Instance)
	if err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.CheckInterval <= 0 {
		c.CheckInterval = checkEvery
	}
	ctx, stop := context.WithCancel(context.Background())
	redial := backoff.DefaultConfig
	redial.BaseDelay, redial.MaxDelay = 100*time.Millisecond, redialMax
	return &Store{
		config: c, id: id, stop: stop, odd: make(map[string]bool),
		owners:   &ownerKeys{path.Join(c.Prefix, "weft/owners") + "/"},
		ownerTTL: defaultOwnerTTL, callTimeout: defaultCallTimeout, random: rand.IntN,
		dialer: clientv3.Config{
			Context: ctx, Endpoints: c.Endpoints, TLS: tls, Username: c.Username, Password: c.Password,
			DialTimeout: defaultCallTimeout, DialKeepAliveTime: pingEvery, DialKeepAliveTimeout: pingTimeout,
			Logger: zap.NewNop(), // errors are returned, and said once by the caller
			DialOptions: []grpc.DialOption{
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: redial, MinConnectTimeout: defaultCallTimeout}),
				grpc.WithChainUnaryInterceptor(noteCause),
			},
		},
	}, nil
}

// Close tells the other nodes that this daemon is gone, as far as etcd answers quickly, and disconnects. The lease
// itself stays for the next start. Calls that still run fail.
func (s *Store) Close() error {
	s.mu.Lock()
	c, h := s.client, s.held
	s.mu.Unlock()
	defer s.stop()
	if c == nil {
		return nil
	}
	if h != nil && h.owner != clientv3.NoLease {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if _, err := c.Revoke(ctx, h.owner); err != nil {
			s.config.Log.Debug("owner key is left to expire", "lease", h.key, "err", err)
		}
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("etcd: close: %w", err)
	}
	return nil
}

// Network reads <prefix>/config.
func (s *Store) Network(ctx context.Context) (lease.Network, error) {
	key := path.Join(s.config.Prefix, "config")
	var got *clientv3.GetResponse
	err := s.call(ctx, "read network config", func(ctx context.Context, c *clientv3.Client) (err error) {
		got, err = c.Get(ctx, key)
		return err
	})
	if err != nil {
		return lease.Network{}, err
	}
	if len(got.Kvs) == 0 {
		return lease.Network{}, fmt.Errorf("etcd: no network config at %s", key)
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

// subnets is the prefix of all lease keys. The slash at its end keeps <prefix>/subnets-old out.
func (s *Store) subnets() string { return path.Join(s.config.Prefix, "subnets") + "/" }

func (s *Store) subnetKey(name string) string { return s.subnets() + name }

// call runs one request with the client and a time limit of its own. what names it in the error.
func (s *Store) call(ctx context.Context, what string, request func(context.Context, *clientv3.Client) error) error {
	var why cause
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, causeKey{}, &why), s.callTimeout)
	defer cancel()
	c, err := s.connect(ctx)
	if err == nil {
		err = request(ctx, c)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("etcd: %s: no answer from %s: %w%s", what, strings.Join(s.config.Endpoints, ", "), err, why.text())
	}
	return fmt.Errorf("etcd: %s: %w", what, err)
}

// cause keeps what grpc knows of a request that timed out (connection refused, certificate not trusted), of which
// etcd's client leaves only the timeout. It travels in the request's context, under causeKey.
type cause struct {
	mu   sync.Mutex
	last string
}

type causeKey struct{}

// noteCause is grpc's innermost interceptor.
func noteCause(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := next(ctx, method, req, reply, cc, opts...)
	if c, ok := ctx.Value(causeKey{}).(*cause); ok && err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last = status.Convert(err).Message()
	}
	return err
}

// text is the cause in parentheses, if there is more to say than that time has run out. The local port goes, so that
// the same trouble has the same text each time.
func (c *cause) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == "" || c.last == context.DeadlineExceeded.Error() {
		return ""
	}
	return " (" + regexp.MustCompile(`:\d+->`).ReplaceAllString(c.last, "->") + ")"
}

// connect returns the one client. With a user name its constructor logs in and needs the server, hence not in Open.
func (s *Store) connect(ctx context.Context) (*clientv3.Client, error) {
	s.dialing.Lock()
	defer s.dialing.Unlock()
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	if c != nil {
		return c, nil
	}
	// The client lives as long as the context it is made with, so ctx may only end the making of it.
	dialer := s.dialer
	life, end := context.WithCancel(dialer.Context)
	dialer.Context = life
	keep := context.AfterFunc(ctx, end)
	made, err := clientv3.New(dialer)
	if !keep() && err == nil {
		made.Close()
		err = ctx.Err()
	}
	if err != nil {
		end()
		if ctx.Err() != nil {
			err = ctx.Err() // which the constructor can only call a cancellation
		}
		return nil, fmt.Errorf("connect: %w", err)
	}
	s.mu.Lock()
	s.client = made
	s.mu.Unlock()
	return made, nil
}

// txn runs one transaction.
func (s *Store) txn(ctx context.Context, what string, t transaction) (*clientv3.TxnResponse, error) {
	var got *clientv3.TxnResponse
	err := s.call(ctx, what, func(ctx context.Context, c *clientv3.Client) (err error) {
		got, err = c.Txn(ctx).If(t.when...).Then(t.then...).Else(t.otherwise...).Commit()
		return err
	})
	return got, err
}

// transaction is what etcd does at once: then if all of when holds, otherwise if not.
type transaction struct {
	when            []clientv3.Cmp
	then, otherwise []clientv3.Op
}

// grant makes an etcd lease.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	var id clientv3.LeaseID
	err := s.call(ctx, "grant an etcd lease", func(ctx context.Context, c *clientv3.Client) error {
		g, err := c.Grant(ctx, int64(ttl/time.Second))
		if err == nil {
			id = g.ID
		}
		return err
	})
	return id, err
}

// revokeEmpty ends an etcd lease that nothing hangs on any more. It would expire alone, so failure is no matter;
// but an etcd lease with keys on it (an operator may have put several on one) is left alone.
func (s *Store) revokeEmpty(ctx context.Context, id clientv3.LeaseID) {
	if id == clientv3.NoLease {
		return
	}
	err := s.call(ctx, "revoke an etcd lease", func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil || got.TTL <= 0 || len(got.Keys) > 0 {
			return err
		}
		_, err = c.Revoke(ctx, id)
		return err
	})
	if err != nil {
		s.config.Log.Debug("an etcd lease is left to expire", "err", err)
	}
}

// complain logs the entries that cannot be read, each key once for as long as it is there.
func (s *Store) complain(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.odd {
		if v.entries[key].err == nil {
			delete(s.odd, key)
		}
	}
	for key, e := range v.entries {
		if e.err != nil && !s.odd[key] {
			s.odd[key] = true
			s.config.Log.Warn("ignoring a lease that cannot be read, but not giving its addresses out", "key", s.subnetKey(key), "err", e.err)
		}
	}
}

func (s *Store) holding() *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

func (s *Store) hold(h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = h
}

// granting remembers the etcd lease that the key is about to be put on: the watch may see it there before the answer.
func (s *Store) granting(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.granted = id
}

// moved reports whether somebody else has put our key on an etcd lease since we wrote it last.
func (s *Store) moved(v *view) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		return false
	}
	e := v.entries[s.held.key]
	return e.mod > s.held.mod && e.grant != clientv3.NoLease && e.grant != s.held.grant && e.grant != s.granted
}

// snapshot is what Watch delivers.
func (s *Store) snapshot(v *view) lease.Snapshot {
	snapshot := v.snapshot()
	snapshot.RenewNow = s.moved(v)
	return snapshot
}

// amend replaces what is held unless another claim has done so meanwhile: Watch and Renew run at the same time.
func (s *Store) amend(old, now *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == old {
		s.held = now
	}
}
