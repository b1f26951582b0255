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

// Config says which etcd to use and how.
type Config struct {
	// Endpoints are URLs. One with http:// stays plaintext whatever certificates are given.
	Endpoints []string
	// Prefix is what all keys begin with, for instance /coreos.com/network. With / the config is at /config, and without
	// any at config.
	Prefix string
	// CertFile and KeyFile are what we show to the server; they go together. CAFile is what the server's
	// certificate is checked with instead of the system's list. Each of the two works without the other.
	CertFile, KeyFile, CAFile string
	// Username and Password may be empty.
	Username, Password string
	// Instance tells daemons of one machine and network namespace apart, and must be the same after a restart: the
	// path of the subnet file is.
	Instance string
	// CheckInterval is about how often Watch compares its list with the server's. Default 20 s, so that wiped or restored
	// data is noticed within a minute.
	CheckInterval time.Duration
	// Log is told of unreadable keys, each once. Default slog.Default().
	Log *slog.Logger
}

// tlsConfig is nil if no file is given.
func (c Config) tlsConfig() (*tls.Config, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, fmt.Errorf("etcd: a certificate and its key go together: certificate file %q, key file %q", c.CertFile, c.KeyFile)
	}
	if c.CertFile == "" && c.CAFile == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("etcd: load certificate %s and key %s: %w", c.CertFile, c.KeyFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// Read again for each connection, so that a renewed certificate needs no restart.
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: read CA file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: CA file %s holds no certificate", c.CAFile)
		}
	}
	return t, nil
}

// identity names this daemon: the same after a crash and restart, another one on another machine, in another network
// namespace, after a reboot and with another instance string.
func identity(instance string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("etcd: identify this machine: %w", err)
	}
	netns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("etcd: identify this network namespace: %w", err)
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{string(boot), netns, instance}, "\x00")))
	return hex.EncodeToString(sum[:16]), nil
}

// check refuses what no request could work with.
func (c Config) check() error {
	if len(c.Endpoints) == 0 {
		return errors.New("etcd: no endpoint given")
	}
	return nil
}
