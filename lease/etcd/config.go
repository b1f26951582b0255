package etcd

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
)

// Config configures a Store.
type Config struct {
	// Endpoints are URLs. An http:// URL uses plaintext even if certificates are configured.
	Endpoints []string
	// Prefix is the prefix of all keys, for example /coreos.com/network. The config key is /config
	// with the prefix /, and config with an empty prefix.
	Prefix string
	// CertFile and KeyFile are the client certificate and its key: both or neither must be set.
	// CAFile replaces the system's CA list for verifying the server; it is independent of them.
	CertFile, KeyFile, CAFile string
	// Username and Password may be empty.
	Username, Password string
	// Instance distinguishes daemons in one network namespace and must be the same after a restart,
	// like the path of the subnet file.
	Instance string
	// CheckInterval is the mean interval at which Watch compares its list with the server's. The
	// default is 20 s: wiped or restored data is noticed within a minute.
	CheckInterval time.Duration
	// Log receives warnings, one per unreadable key. The default is slog.Default().
	Log *slog.Logger
}

// tlsConfig returns the TLS configuration; nil if no file is set.
func (c Config) tlsConfig() (*tls.Config, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, fmt.Errorf("etcd: certificate file %q and key file %q: set both or neither",
			c.CertFile, c.KeyFile)
	}
	if c.CertFile == "" && c.CAFile == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("etcd: load certificate %s and key %s: %w",
					c.CertFile, c.KeyFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// Load the files for each connection, so that a renewed certificate needs no restart.
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return load()
		}
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: read CA file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: CA file %s contains no certificate", c.CAFile)
		}
	}
	return t, nil
}

// identity returns the ID of this daemon in owner keys. It survives a crash and restart, but
// differs between machines, network namespaces, boots and instance strings.
func identity(instance string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("etcd: read boot ID: %w", err)
	}
	netns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("etcd: read network namespace: %w", err)
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{string(boot), netns, instance}, "\x00")))
	return hex.EncodeToString(sum[:16]), nil
}

// check rejects a Config with which every request would fail.
func (c Config) check() error {
	if len(c.Endpoints) == 0 {
		return errors.New("etcd: no endpoints given")
	}
	return nil
}
