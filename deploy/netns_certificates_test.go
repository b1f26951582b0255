package deploy_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/ctrl/backend/cloud/testcloud"
	"weft/deploy/lab"
)

// bundle is the path of the CA certificates in both images.
const bundle = "/etc/ssl/certs/ca-certificates.crt"

// TestImageCertificates reads the bundles of both images.
func TestImageCertificates(t *testing.T) {
	dir := filepath.Clean(fullImageDir(t))
	for _, image := range []string{dir, dir + "-minimal"} {
		text, err := os.ReadFile(filepath.Join(image, bundle))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				t.Errorf("%s: %v", image, err)
			}
			n++
		}
		if n < 100 {
			t.Errorf("%s: %d certificates", image, n)
		}
	}
}

// serveOn serves a handler at a node's loopback address.
func serveOn(t *testing.T, n *lab.Node, h http.Handler, start func(*httptest.Server)) *httptest.Server {
	t.Helper()
	l, err := n.Listen(netip.MustParseAddr("127.0.0.1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	if err := s.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	start(s)
	t.Cleanup(s.Close)
	return s
}

// TestNetnsImageTrust runs the daemon in the files of the image. The certificate of the cloud's API
// is of a CA in the bundle, in the file that SSL_CERT_FILE names, or in neither.
func TestNetnsImageTrust(t *testing.T) {
	n := lab.Start(t, lab.Options{Nodes: 1}).Nodes[0]
	etcd := startEtcd(t, n)
	if err := etcd.Put("/coreos.com/network/config", `{"Network":"10.5.0.0/16","Backend":{"Type":"aws-vpc"}}`); err != nil {
		t.Fatal(err)
	}
	vpc := testcloud.NewAWS()
	t.Cleanup(vpc.Close)
	api := serveOn(t, n, vpc.API.Config.Handler, (*httptest.Server).StartTLS)
	metadata := serveOn(t, n, vpc.Metadata.Config.Handler, (*httptest.Server).Start)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o644); err != nil {
		t.Fatal(err)
	}
	const inPlace = "routes of this node are in place"
	for _, x := range []struct {
		name   string
		mounts []mount
		env    []string
		want   string
	}{
		{"unknown", nil, nil, "DescribeRouteTables: " + api.Listener.Addr().String() + ": tls: failed to verify " +
			"certificate: x509: certificate signed by unknown authority: is there a proxy? " +
			"Name a file with its CA's certificate in SSL_CERT_FILE"},
		{"bundle", []mount{{ca, bundle, true}}, nil, inPlace},
		{"file", []mount{{ca, "/run/ca.pem", true}}, []string{"SSL_CERT_FILE=/run/ca.pem"}, inPlace},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := container{Root: buildImageDir(t), Mounts: x.mounts, Capabilities: []string{"NET_ADMIN", "NET_RAW"},
				Argv: []string{"/opt/bin/flanneld", "--etcd-endpoints=" + etcd.Endpoint()}}
			p := c.start(t, n, t.TempDir(), append(x.env, "AWS_ENDPOINT_URL_EC2="+api.URL,
				"AWS_EC2_METADATA_SERVICE_ENDPOINT="+metadata.URL)...)
			await(t, fmt.Sprintf("log with %q", x.want), func() error {
				if log := p.Log(); !strings.Contains(log, x.want) {
					return fmt.Errorf("log: %s", log)
				}
				return nil
			})
			if _, err := p.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
