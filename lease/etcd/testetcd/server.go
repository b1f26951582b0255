// Package testetcd runs a real etcd server inside the process, for tests, the demo and benchmarks.
// It has one member, elects itself quickly and does not log. It does not call fsync: its data
// survives the process but not a power failure.
package testetcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
)

// readyTimeout bounds the wait for the first election. It takes under 100 ms on an idle machine.
const readyTimeout = 30 * time.Second

// Config configures a Server.
type Config struct {
	// Dir is the data directory. Start creates it if necessary; Wipe removes it.
	Dir string
	// Listen is the client address, in the network namespace in which Start is called. Port 0
	// selects a free port, which the Server keeps when it is restarted.
	Listen netip.AddrPort
	// CertFile and KeyFile enable TLS. ClientCAFile additionally requires client certificates.
	CertFile, KeyFile, ClientCAFile string
	// AuthToken is etcd's --auth-token: the kind of the tokens of users. The default is simple.
	AuthToken string
}

// Server is an etcd server that can be stopped and restarted. Its methods are not safe for
// concurrent use.
type Server struct {
	config Config
	peer   netip.AddrPort
	etcd   *embed.Etcd // nil while stopped

	mu      sync.Mutex
	serving []*grpc.Server // gRPC servers for clients
}

// Start starts a server and returns when it accepts requests. The caller closes it.
//
// The calling goroutine opens the sockets: to start the server in a network namespace, lock the
// goroutine to a thread in that namespace.
func Start(c Config) (*Server, error) {
	s := &Server{config: c}
	var err error
	if s.config.Listen, err = freePort(c.Listen); err != nil {
		return nil, err
	}
	if s.peer, err = freePort(netip.AddrPortFrom(c.Listen.Addr(), 0)); err != nil {
		return nil, err
	}
	return s, s.Start()
}

// Endpoint returns the URL for clients. It survives restarts.
func (s *Server) Endpoint() string {
	u := s.clientURL()
	return u.String()
}

// Start restarts a stopped server with the data in Dir.
func (s *Server) Start() error {
	if s.etcd != nil {
		return errors.New("start etcd: server is already running")
	}
	e, err := embed.StartEtcd(s.embedConfig())
	if err != nil {
		return fmt.Errorf("start etcd on %s: %w", s.config.Listen, err)
	}
	s.etcd = e
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
		return nil
	case err = <-e.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Close()
	return fmt.Errorf("wait for etcd on %s: %w", s.config.Listen, err)
}

// Close stops the server and keeps its data. It closes client connections at once: etcd's own
// shutdown waits seconds for open watches. Closing a stopped server does nothing.
func (s *Server) Close() {
	if s.etcd == nil {
		return
	}
	s.mu.Lock()
	serving := s.serving
	s.serving = nil
	s.mu.Unlock()
	for _, g := range serving {
		g.Stop()
	}
	s.etcd.Close()
	s.etcd = nil
}

// Wipe removes the data of a stopped server.
func (s *Server) Wipe() error {
	if s.etcd != nil {
		return errors.New("wipe etcd: server is running")
	}
	return os.RemoveAll(s.config.Dir)
}

// Compact discards the history before the current revision, like etcdctl compact.
func (s *Server) Compact() error {
	if s.etcd == nil {
		return errors.New("compact etcd: server is not running")
	}
	kv := s.etcd.Server.KV()
	done, err := kv.Compact(traceutil.TODO(), kv.Rev())
	if err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	<-done
	return nil
}

func (s *Server) clientURL() url.URL {
	u := url.URL{Scheme: "http", Host: s.config.Listen.String()}
	if s.config.CertFile != "" {
		u.Scheme = "https"
	}
	return u
}

func (s *Server) embedConfig() *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir = "lab", s.config.Dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client, peer := s.clientURL(), url.URL{Scheme: "http", Host: s.peer.String()}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = s.config.CertFile, s.config.KeyFile
	c.ClientTLSInfo.TrustedCAFile = s.config.ClientCAFile
	c.ClientTLSInfo.ClientCertAuth = s.config.ClientCAFile != ""
	c.ServiceRegister = func(g *grpc.Server) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.serving = append(s.serving, g)
	}
	if s.config.AuthToken != "" {
		c.AuthToken = s.config.AuthToken
	}
	c.EnableGRPCGateway = false // it would dial from a thread in any namespace
	c.UnsafeNoFsync = true
	c.BcryptCost = uint(bcrypt.MinCost) // test passwords need no protection
	c.TickMs, c.ElectionMs = 10, 100    // a single member is ready after 34 to 76 ms (measured)
	return c
}

// freePort replaces port 0 by a port that is currently free.
func freePort(a netip.AddrPort) (netip.AddrPort, error) {
	if a.Port() != 0 {
		return a, nil
	}
	l, err := net.Listen("tcp", a.String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find a free port on %s: %w", a.Addr(), err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}
