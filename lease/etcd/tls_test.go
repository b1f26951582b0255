package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease/etcd/testetcd"
)

// authority is a CA that signs certificates for a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{dir: t.TempDir()}
	a.file, _ = a.issue(t, "ca")
	return a
}

// issue writes a certificate for 127.0.0.1 and its key; the first one is the authority's own.
func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if a.cert == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		a.cert, a.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// reach reports whether a store with this config gets an answer.
func reach(t *testing.T, c Config) error {
	t.Helper()
	s := open(t, c)
	_, err := s.list(t.Context())
	return err
}

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "server")
	clientCert, clientKey := ca.issue(t, "client")
	open := serveConfig(t, testetcd.Config{CertFile: cert, KeyFile: key})
	strict := serveConfig(t, testetcd.Config{CertFile: cert, KeyFile: key, ClientCAFile: ca.file})
	plain := serve(t)
	other := newAuthority(t)
	tests := []struct {
		name   string
		server *testetcd.Server
		change func(*Config)
		says   string // in the error; none if it works
	}{
		{"a lone CA file", open, func(c *Config) { c.CAFile = ca.file }, ""},
		{"no CA file: the system does not know ours", open, func(*Config) {}, "signed by unknown authority"},
		{"another CA", open, func(c *Config) { c.CAFile = other.file }, "signed by unknown authority"},
		{"a server that asks for a certificate", strict, func(c *Config) { c.CAFile, c.CertFile, c.KeyFile = ca.file, clientCert, clientKey }, ""},
		{"a server that asks, and none to show", strict, func(c *Config) { c.CAFile = ca.file }, "no answer"},
		{"http:// stays plaintext", plain, func(c *Config) { c.CAFile, c.CertFile, c.KeyFile = ca.file, clientCert, clientKey }, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // a refusal takes as long as a call may
			c := quiet(test.server, "/net", 0)
			test.change(&c)
			if err := reach(t, c); test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "client")
	good := Config{Endpoints: []string{"https://127.0.0.1:1"}, Prefix: "/net"}
	tests := []struct {
		name, says string
		change     func(*Config)
	}{
		{"a certificate without a key", "go together", func(c *Config) { c.CertFile = cert }},
		{"a key without a certificate", "go together", func(c *Config) { c.KeyFile = key }},
		{"files that do not fit", "load certificate", func(c *Config) { c.CertFile, c.KeyFile = ca.file, key }},
		{"a CA file that is none", "holds no certificate", func(c *Config) { c.CAFile = key }},
		{"a CA file that is not there", "read CA file", func(c *Config) { c.CAFile = ca.file + "x" }},
		{"no endpoint", "no endpoint", func(c *Config) { c.Endpoints = nil }},
	}
	for _, test := range tests {
		c := good
		test.change(&c)
		if s, err := Open(c); err == nil || !strings.Contains(err.Error(), test.says) {
			if err == nil {
				s.Close()
			}
			t.Errorf("%s: got %v, want %q", test.name, err, test.says)
		}
	}
	start := time.Now()
	s, err := Open(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil || time.Since(start) > time.Second {
		t.Errorf("Open and Close without a server took %s, %v", time.Since(start), err)
	}
}

func TestUserAndPassword(t *testing.T) {
	server := serve(t)
	op := operate(t, server, "/coreos.com/network")
	op.put(t, "/config", onlyV4)
	ctx := t.Context()
	op.guard(t, permission{"/coreos.com/network/", clientv3.PermReadWrite})
	config := func(user, password string) Config {
		c := quiet(server, "/coreos.com/network", 0)
		c.Username, c.Password = user, password
		return c
	}
	s := open(t, config("weft", "secret"))
	n, err := s.Network(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l := mustClaim(t, s, request(n, 0))
	if _, err := s.Renew(ctx, l); err != nil {
		t.Error(err)
	}
	startWatch(t, s).next(t)
	if s.holding().owner == clientv3.NoLease {
		t.Error("a role that covers the prefix gets no owner keys")
	}
	if err := reach(t, config("weft", "wrong")); err == nil || !strings.Contains(err.Error(), "invalid user ID or password") {
		t.Errorf("wrong password: %v", err)
	}
	if err := reach(t, config("", "")); err == nil {
		t.Error("nobody was let in")
	}

	// Logging in must not block Open, nor a cancelled call.
	server.Close()
	start := time.Now()
	if err := reach(t, config("weft", "secret")); err == nil || time.Since(start) > 2*defaultCallTimeout {
		t.Errorf("without a server: %v after %s", err, time.Since(start))
	}
}

// permission is for all keys that begin with a prefix.
type permission struct {
	prefix string
	kind   authpb.Permission_Type
}

// guard lets nobody in but root and the user weft, who has these permissions.
func (o operator) guard(t *testing.T, permissions ...permission) {
	t.Helper()
	ctx := t.Context()
	steps := []func() error{
		func() error { _, err := o.UserAdd(ctx, "root", "r"); return err },
		func() error { _, err := o.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := o.UserAdd(ctx, "weft", "secret"); return err },
		func() error { _, err := o.RoleAdd(ctx, "network"); return err },
		func() error { _, err := o.UserGrantRole(ctx, "weft", "network"); return err },
	}
	for _, p := range permissions {
		steps = append(steps, func() error {
			_, err := o.RoleGrantPermission(ctx, "network", p.prefix, clientv3.GetPrefixRangeEnd(p.prefix), clientv3.PermissionType(p.kind))
			return err
		})
	}
	steps = append(steps, func() error { _, err := o.AuthEnable(ctx); return err })
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestARoleForFlannelIsEnough(t *testing.T) {
	for _, test := range []struct {
		name  string
		extra []permission
	}{
		{"no word of owner keys", nil},
		{"owner keys may be read alone", []permission{{"/net/weft/", clientv3.PermRead}}},
		{"owner keys may be written alone", []permission{{"/net/weft/", clientv3.PermWrite}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := serve(t)
			op := operate(t, server, "/net")
			op.put(t, "/config", onlyV4)
			op.guard(t, append(test.extra, permission{"/net/config", clientv3.PermRead}, permission{"/net/subnets", clientv3.PermReadWrite})...)
			c := quiet(server, "/net", 0)
			var log lockedBuffer
			c.Username, c.Password, c.Log = "weft", "secret", slog.New(slog.NewTextHandler(&log, nil))
			s := open(t, c)
			s.ownerTTL = time.Second // many beats
			n, err := s.Network(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w := startWatch(t, s)
			if got := w.next(t); len(got.Leases) != 0 {
				t.Errorf("first list: %+v", got)
			}
			l := mustClaim(t, s, request(n, 0))
			if got := w.next(t); len(got.Leases) != 1 || !got.Leases[0].SameSubnets(l) {
				t.Errorf("list: %+v", got)
			}
			if err := s.beat(t.Context()); err != nil {
				t.Errorf("beat: %v", err)
			}
			startWatch(t, s).next(t)
			if grant := s.holding().owner; grant != clientv3.NoLease {
				t.Errorf("an etcd lease for an owner key: %x", grant)
			}
			l.BackendType = "host-gw"
			if l, err = s.Renew(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if got := w.next(t); got.Leases[0].BackendType != "host-gw" || got.RenewNow {
				t.Errorf("list: %+v", got)
			}
			if again := mustClaim(t, s, request(n, 0)); !again.SameSubnets(l) {
				t.Errorf("had %s, got %s", l.Subnet, again.Subnet)
			}
			if n := strings.Count(log.String(), "prefix=/net/weft/owners/"); n != 1 || strings.Count(log.String(), "level=") != 1 {
				t.Errorf("log:\n%s", log.String())
			}
		})
	}
}

func TestARoleThatIsNotEnoughIsToldWhatItLacks(t *testing.T) {
	server := serve(t)
	op := operate(t, server, "/net")
	op.guard(t, permission{"/net/weft/", clientv3.PermReadWrite})
	c := quiet(server, "/net", 0)
	c.Username, c.Password = "weft", "secret"
	s := open(t, c)
	_, err := s.Claim(t.Context(), request(parseNetwork(t, onlyV4), 0))
	if err == nil || !strings.Contains(err.Error(), "/net/subnets/: etcdserver: permission denied") {
		t.Errorf("got %v", err)
	}
	if s.ownerKeys() == nil {
		t.Error("owner keys, which the role covers, were given up")
	}
}
