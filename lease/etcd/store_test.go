package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"weft/lease"
	"weft/lease/etcd/testetcd"
	"weft/lease/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs an etcd server until the test ends.
func serve(t *testing.T) *testetcd.Server {
	t.Helper()
	return serveConfig(t, testetcd.Config{})
}

func serveConfig(t *testing.T, c testetcd.Config) *testetcd.Server {
	t.Helper()
	c.Dir, c.Listen = filepath.Join(t.TempDir(), "etcd"), netip.MustParseAddrPort("127.0.0.1:0")
	s, err := testetcd.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// operator is a separate client, like etcdctl, for changes made by other programs.
type operator struct {
	*clientv3.Client
	prefix string
}

func newOperator(t *testing.T, s restartable, prefix string) operator {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return operator{c, prefix}
}

func (o operator) put(t *testing.T, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	if _, err := o.Put(t.Context(), o.prefix+key, value, opts...); err != nil {
		t.Fatal(err)
	}
}

func (o operator) delete(t *testing.T, key string) {
	t.Helper()
	if _, err := o.Delete(t.Context(), o.prefix+key); err != nil {
		t.Fatal(err)
	}
}

// all returns the keys and values under a prefix. The keys are without the prefix.
func (o operator) all(t *testing.T, below string) map[string]string {
	t.Helper()
	got, err := o.Get(t.Context(), o.prefix+below, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, kv := range got.Kvs {
		all[string(kv.Key)[len(o.prefix+below):]] = string(kv.Value)
	}
	return all
}

// leaseIDOf returns the etcd lease of a key; 0 if it has none.
func (o operator) leaseIDOf(t *testing.T, key string) clientv3.LeaseID {
	t.Helper()
	got, err := o.Get(t.Context(), o.prefix+key)
	if err != nil || len(got.Kvs) != 1 {
		t.Fatalf("get %s: %d keys, %v", key, len(got.Kvs), err)
	}
	return clientv3.LeaseID(got.Kvs[0].Lease)
}

// testConfig returns the config of node n of a cluster at prefix, without logging.
func testConfig(s *testetcd.Server, prefix string, n int) Config {
	return Config{
		Endpoints: []string{s.Endpoint()}, Prefix: prefix, Instance: fmt.Sprint("node", n),
		CheckInterval: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
}

func open(t *testing.T, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func parseNetwork(t *testing.T, config string) lease.Network {
	t.Helper()
	n, err := lease.ParseNetwork([]byte(config))
	if err == nil {
		err = n.Check()
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// request returns the lease request of node n.
func request(network lease.Network, n int) lease.Request {
	return lease.Request{
		Network: network, Node: fmt.Sprint("node", n),
		Attrs: lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)})},
	}
}

func TestStore(t *testing.T) {
	server := serve(t)
	clusters := 0
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		const config = `{"Network":"10.5.0.0/19","SubnetLen":24,"SubnetMax":"10.5.20.0"}`
		clusters++
		prefix := fmt.Sprint("/cluster", clusters)
		op := newOperator(t, server, prefix)
		op.put(t, "/config", config)
		network := parseNetwork(t, config)
		next := 0
		return storetest.Harness{
			Nodes:   20,
			Request: func(n int) lease.Request { return request(network, n) },
			Open:    func(t *testing.T, n int) lease.Store { return open(t, testConfig(server, prefix, n)) },
			Add: func(t *testing.T) lease.Lease {
				for next++; ; next++ {
					l := lease.Lease{
						Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(next), 0}), 24),
						Attrs:  lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 51, 100, byte(next)})},
					}
					if _, taken := op.all(t, "/subnets/")[formatKey(l)]; !taken {
						op.putLease(t, l)
						return l
					}
				}
			},
			Change: func(t *testing.T, l lease.Lease) lease.Lease {
				l.PublicIP = netip.MustParseAddr("203.0.113.9")
				op.putLease(t, l)
				return l
			},
			Remove:  func(t *testing.T, l lease.Lease) { op.delete(t, "/subnets/"+formatKey(l)) },
			Compact: func(t *testing.T) { compact(t, server) },
		}
	})
}

func TestMissingConfigHint(t *testing.T) {
	server := serve(t)
	for key, want := range map[string]string{
		"/net5/x":        "keys of version 2 are not visible",
		"/net1":          "a key /net1 exists, but the config belongs at /net1/config",
		"net2/config":    "a key net2/config exists, but the config belongs at /net2/config",
		"/net3/config/":  "a key /net3/config/ exists, but the config belongs at /net3/config",
		"/net4/config/x": "keys of version 2 are not visible",
	} {
		newOperator(t, server, "").put(t, key, onlyV4)
		prefix := "/" + strings.Split(strings.TrimPrefix(key, "/"), "/")[0]
		_, err := open(t, testConfig(server, prefix, 0)).Network(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("config at %s: got %v, want %q", key, err, want)
		}
	}
	server.Close()
	s := open(t, testConfig(server, "/net", 0))
	s.callTimeout = 100 * time.Millisecond
	if _, err := s.Network(t.Context()); err == nil || strings.Contains(err.Error(), "version 2") {
		t.Errorf("without a server: %v", err)
	}
}

func TestPrefixes(t *testing.T) {
	for _, test := range []struct{ prefix, config, subnets, owners string }{
		{"/", "/config", "/subnets/", "/weft/owners/"},
		{"", "config", "subnets/", "weft/owners/"},
		{"net//a/", "net/a/config", "net/a/subnets/", "net/a/weft/owners/"},
	} {
		t.Run(test.prefix, func(t *testing.T) {
			server := serve(t)
			op := newOperator(t, server, "")
			op.put(t, test.config, onlyV4)
			s := open(t, testConfig(server, test.prefix, 0))
			n, err := s.Network(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l := mustClaim(t, s, request(n, 0))
			if got := startWatch(t, s).next(t); got.Leases.Len() != 1 || !lease.List(got.Leases)[0].SameSubnets(l) {
				t.Errorf("list: %+v", got)
			}
			for _, below := range []string{test.subnets, test.owners} {
				if got := op.all(t, below); got[formatKey(l)] == "" {
					t.Errorf("keys in %s: %v", below, got)
				}
			}
		})
	}
}

func compact(t *testing.T, s *testetcd.Server) {
	t.Helper()
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
}

// putLease writes a lease as a flannel node does.
func (o operator) putLease(t *testing.T, l lease.Lease) {
	t.Helper()
	grant, err := o.Grant(context.Background(), 86400)
	if err != nil {
		t.Fatal(err)
	}
	o.put(t, "/subnets/"+formatKey(l), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, l.PublicIP),
		clientv3.WithLease(grant.ID))
}
