// Package testetcd runs a real etcd server inside the process, for tests, the demo and benchmarks: one member,
// quiet, quick to elect itself, and without fsync, so its data survives the process but not a power cut.
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

// Config says where a server keeps its data and listens.
type Config struct {
	// Dir holds the data. It is created if it does not exist; Wipe empties it.
	Dir string
	// Listen is the client address, on an IP of the network namespace that Start is called in. Port 0 picks a free
	// one, which later Starts of the same Server keep.
	Listen netip.AddrPort
	// CertFile and KeyFile make the server speak TLS. ClientCAFile makes it ask clients for a certificate too.
	CertFile, KeyFile, ClientCAFile string
}

// Server is a server that can be stopped and started again. Its methods are for one goroutine.
type Server struct {
	config Config
	peer   netip.AddrPort
	etcd   *embed.Etcd // nil while stopped

	mu      sync.Mutex
	serving []*grpc.Server // what etcd answers clients with
}

// Start runs a server and returns when it takes requests. The caller closes it.
//
// The sockets are opened by the calling goroutine: inside a namespace, call it with that thread locked.
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

// Endpoint is the URL for clients, the same one for the whole life of the Server.
func (s *Server) Endpoint() string {
	u := s.clientURL()
	return u.String()
}

// Start runs a stopped server again, with the data that Dir holds.
func (s *Server) Start() error {
	if s.etcd != nil {
		return errors.New("etcd server runs already")
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

// Close stops the server and keeps its data. Clients are cut off at once: etcd's own way out waits seconds for open
// watches to end. Closing a stopped server does nothing.
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
		return errors.New("wipe etcd: the server runs")
	}
	return os.RemoveAll(s.config.Dir)
}

// Compact drops the history before the newest revision, as an operator's etcdctl compact would.
func (s *Server) Compact() error {
	if s.etcd == nil {
		return errors.New("compact etcd: the server does not run")
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
	c.EnableGRPCGateway = false // it would dial the server from a thread of any namespace
	c.UnsafeNoFsync = true
	c.BcryptCost = uint(bcrypt.MinCost) // passwords of a lab need no protection
	c.TickMs, c.ElectionMs = 10, 100    // one member elects itself: measured 34 to 76 ms to ready
	return c
}

// freePort replaces port 0 by one that is free now.
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
