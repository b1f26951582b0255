package etcd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"weft/lease"
	"weft/lease/etcd/testetcd"
)

// restartable is an etcd server of any version.
type restartable interface {
	Endpoint() string
	Start() error
	Close()
}

// program is an etcd server in a process of its own.
type program struct {
	t       *testing.T
	args    []string
	client  string // URL
	log     lockedBuffer
	process *exec.Cmd
}

// serveProgram runs the etcd server that WEFT_ETCD names, with additional arguments.
func serveProgram(t *testing.T, args ...string) *program {
	t.Helper()
	path := os.Getenv("WEFT_ETCD")
	if path == "" {
		t.Skip("NOT TESTED with an old etcd server: WEFT_ETCD is not set")
	}
	p := &program{t: t, client: freeURL(t)}
	peer := freeURL(t)
	p.args = append([]string{
		path, "--data-dir", filepath.Join(t.TempDir(), "data"), "--unsafe-no-fsync",
		"--listen-client-urls", p.client, "--advertise-client-urls", p.client, "--bcrypt-cost", "4",
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default=" + peer,
		"--backend-batch-limit", "1", "--heartbeat-interval", "10", "--election-timeout", "100",
	}, args...)
	t.Cleanup(p.Close)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// freeURL returns the URL of a free port.
func freeURL(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func (p *program) Endpoint() string { return p.client }

func (p *program) Start() error {
	p.process = exec.Command(p.args[0], p.args[1:]...)
	p.process.Stdout, p.process.Stderr = &p.log, &p.log
	p.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p.process.Start()
}

func (p *program) Close() {
	if p.process == nil {
		return
	}
	if err := p.process.Process.Kill(); err != nil {
		p.t.Error(err)
	}
	_ = p.process.Wait() // reports the kill
	p.process = nil
}

// TestLoginServerRestart restarts a server with authentication. The write of another client
// matters: a server before 3.5 repeats the requests after the last write when it starts, logins
// included.
func TestLoginServerRestart(t *testing.T) {
	run := func(t *testing.T, server restartable) {
		states := followWithLogin(t, server)
		putAsRoot(t, server, "/other", "x")
		server.Close()
		states.await(t, "the outage", func(s lease.State) bool { return !s.Connected })
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		putAsRoot(t, server, "/net/subnets/10.5.200.0-24", `{"PublicIP":"192.0.2.200"}`)
		states.await(t, "the lease of the other node", func(s lease.State) bool {
			return s.Held && s.Connected && s.All.Len() == 2
		})
		if p, ok := server.(*program); ok {
			if n := strings.Count(p.log.String(), "invalid auth token"); n > 10 {
				t.Errorf("%d requests with an invalid token", n)
			}
		}
	}
	t.Run("embedded", func(t *testing.T) { run(t, serve(t)) })
	t.Run("program", func(t *testing.T) { run(t, serveProgram(t)) })
}

// TestLoginTokenExpires follows changes for several lifetimes of the token.
func TestLoginTokenExpires(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens := "jwt,sign-method=HS256,ttl=2s,priv-key=" + key
	run := func(t *testing.T, server restartable) {
		states := followWithLogin(t, server)
		ip := netip.MustParseAddr("192.0.2.100")
		for begin := time.Now(); time.Since(begin) < 5*time.Second; ip = ip.Next() {
			putAsRoot(t, server, "/net/subnets/10.5.200.0-24", `{"PublicIP":"`+ip.String()+`"}`)
			states.await(t, "the change of another node", func(s lease.State) bool {
				return slices.ContainsFunc(lease.List(s.All), func(l lease.Lease) bool { return l.PublicIP == ip })
			})
		}
		for _, err := range states.errs {
			if !errors.Is(err, errStale) { // a check may come before the change that it expects
				t.Errorf("disconnected: %v", err)
			}
		}
	}
	t.Run("embedded", func(t *testing.T) {
		run(t, serveConfig(t, testetcd.Config{AuthToken: tokens}))
	})
	t.Run("program", func(t *testing.T) { run(t, serveProgram(t, "--auth-token", tokens)) })
}

// TestLoginPausesAfterFailure counts the logins of a client that etcd refuses.
func TestLoginPausesAfterFailure(t *testing.T) {
	server := serve(t)
	newOperator(t, server, "/net").enableAuth(t)
	c := testConfig(server, "/net", 0)
	c.Username, c.Password = "weft", "wrong"
	s := open(t, c)
	var logins atomic.Int32
	client, err := newClient(c, func(ctx context.Context, method string, req, reply any,
		cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		if method == authenticateMethod {
			logins.Add(1)
		}
		return next(ctx, method, req, reply, cc, opts...)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.client.Close()
	s.client = client
	begin := time.Now()
	for range 100 {
		_, err := s.Network(t.Context())
		if err == nil || !strings.Contains(err.Error(), "invalid user ID or password") {
			t.Fatalf("got %v", err)
		}
	}
	if most := 1 + int32(time.Since(begin)/loginPause); logins.Load() > most {
		t.Errorf("%d logins, want %d at most", logins.Load(), most)
	}
}

// followWithLogin enables authentication and runs a Manager that logs in.
func followWithLogin(t *testing.T, server restartable) *stateLog {
	t.Helper()
	op := newOperator(t, server, "/net")
	await(t, "etcd answers", func() error {
		_, err := op.Get(t.Context(), "/")
		return err
	})
	op.put(t, "/config", onlyV4)
	op.enableAuth(t, permission{"/net/", clientv3.PermReadWrite})
	s := open(t, Config{
		Endpoints: []string{server.Endpoint()}, Prefix: "/net", Username: "weft", Password: "secret",
		CheckInterval: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	n, err := s.Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.ownerTTL, s.callTimeout = 3*time.Second, time.Second // notices an outage sooner
	states := &stateLog{changed: make(chan struct{}, 1)}
	m := lease.NewManager(s, request(n, 0), lease.Options{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, states.add) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	states.await(t, "the own lease", func(s lease.State) bool { return s.Held && s.Connected })
	return states
}

// stateLog is the last state of a Manager.
type stateLog struct {
	mu      sync.Mutex
	last    lease.State
	errs    []error       // of the states of all states
	changed chan struct{} // holds one entry after a change
}

func (l *stateLog) add(s lease.State) {
	l.mu.Lock()
	if l.last = s; s.Err != nil {
		l.errs = append(l.errs, s.Err)
	}
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// await waits until a state is as wanted.
func (l *stateLog) await(t *testing.T, what string, wanted func(lease.State) bool) {
	t.Helper()
	limit := time.After(15 * time.Second)
	for {
		l.mu.Lock()
		last := l.last
		l.mu.Unlock()
		if wanted(last) {
			return
		}
		select {
		case <-l.changed:
		case <-limit:
			t.Fatalf("waiting for %s: %+v", what, last)
		}
	}
}

// putAsRoot writes a key with a login of its own, once the server answers. etcd's client would
// repeat a request with an expired token for minutes.
func putAsRoot(t *testing.T, server restartable, key, value string) {
	t.Helper()
	await(t, "write as root", func() error {
		c, err := clientv3.New(clientv3.Config{
			Endpoints: []string{server.Endpoint()}, Username: "root", Password: "r",
			DialTimeout: 2 * time.Second, Logger: zap.NewNop(),
		})
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = c.Put(ctx, key, value)
		return err
	})
}

// await retries until f succeeds.
func await(t *testing.T, what string, f func() error) {
	t.Helper()
	limit := time.Now().Add(15 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
