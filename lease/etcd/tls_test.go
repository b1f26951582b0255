package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// issue writes a certificate for 127.0.0.1 and its key. The first one is the authority's own.
func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
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
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// reach returns the error of a list request of a store with config c.
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
		want   string // in the error; empty if the request must succeed
	}{
		{"CA file only", open, func(c *Config) { c.CAFile = ca.file }, ""},
		{"no CA file", open, func(*Config) {}, "signed by unknown authority"},
		{"other CA", open, func(c *Config) { c.CAFile = other.file }, "signed by unknown authority"},
		{"client certificate required", strict,
			func(c *Config) { c.CAFile, c.CertFile, c.KeyFile = ca.file, clientCert, clientKey }, ""},
		{"client certificate missing", strict, func(c *Config) { c.CAFile = ca.file }, "no answer"},
		{"http URL stays plaintext", plain,
			func(c *Config) { c.CAFile, c.CertFile, c.KeyFile = ca.file, clientCert, clientKey }, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // a rejection takes until the call timeout
			c := testConfig(test.server, "/net", 0)
			test.change(&c)
			if err := reach(t, c); test.want == "" && err != nil ||
				test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "client")
	good := Config{Endpoints: []string{"https://127.0.0.1:1"}, Prefix: "/net"}
	tests := []struct {
		name, want string
		change     func(*Config)
	}{
		{"certificate without key", "set both or neither", func(c *Config) { c.CertFile = cert }},
		{"key without certificate", "set both or neither", func(c *Config) { c.KeyFile = key }},
		{"files do not match", "load certificate", func(c *Config) { c.CertFile, c.KeyFile = ca.file, key }},
		{"CA file without certificate", "contains no certificate", func(c *Config) { c.CAFile = key }},
		{"missing CA file", "read CA file", func(c *Config) { c.CAFile = ca.file + "x" }},
		{"no endpoints", "no endpoints", func(c *Config) { c.Endpoints = nil }},
	}
	for _, test := range tests {
		c := good
		test.change(&c)
		if s, err := Open(c); err == nil || !strings.Contains(err.Error(), test.want) {
			if err == nil {
				s.Close()
			}
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	start := time.Now()
	s, err := Open(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil || time.Since(start) > time.Second {
		t.Errorf("Open and Close without a server: %s, %v", time.Since(start), err)
	}
}
