// Package testkube runs a real Kubernetes API server for tests: etcd, kube-apiserver and, on
// demand, the controller that assigns pod CIDRs to nodes, as processes of the binary built by
// .ci/kube/build. It listens on one address in the network namespace in which Start is called.
//
// The API server enforces RBAC and issues service account tokens. There is no kubelet or scheduler:
// tests create Node objects themselves.
package testkube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// BinaryEnv is the environment variable that holds the path of the binary.
const BinaryEnv = "WEFT_TESTKUBE"

// AdminToken is a bearer token with all permissions.
const AdminToken = "admin-token"

// startTimeout bounds the start of the API server, which takes 3 s on an idle machine.
const startTimeout = 2 * time.Minute

// ErrNoBinary means that the binary is missing, so tests with an API server cannot run.
var ErrNoBinary = errors.New("no Kubernetes API server: " + BinaryEnv +
	" is not set; .ci/kube/build builds one and prints its path")

// Cluster is a running control plane. Its methods are not safe for concurrent use.
type Cluster struct {
	// URL is the URL of the API server, CA the file with the certificate to trust, and Kubeconfig a
	// file for kubectl and client-go with all permissions.
	URL, CA, Kubeconfig string

	binary, dir string
	listen      netip.AddrPort
	etcdURL     string
	etcd, api   *process
	ipam        *process     // nil: not started
	http        *http.Client // nil: not created
}

// Start starts a control plane on an address, with data and logs in dir, and returns when it
// accepts requests. The caller closes it. It fails with ErrNoBinary if the binary is missing.
func Start(listen netip.Addr, dir string) (*Cluster, error) {
	binary := os.Getenv(BinaryEnv)
	if binary == "" {
		return nil, ErrNoBinary
	}
	ports, err := freePorts(listen, 3)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		binary: binary, dir: dir, listen: ports[0],
		URL: "https://" + ports[0].String(), etcdURL: "http://" + ports[1].String(),
		CA:         filepath.Join(dir, "cert", "apiserver.crt"),
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
	}
	if err := c.writeFiles(); err != nil {
		return nil, fmt.Errorf("testkube: %w", err)
	}
	c.etcd, err = start(binary, filepath.Join(dir, "etcd.log"), "etcd",
		"--data-dir="+filepath.Join(dir, "etcd"), "--client-url="+c.etcdURL,
		"--peer-url=http://"+ports[2].String())
	if err != nil {
		return nil, err
	}
	if err := c.StartAPI(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// auditPolicy makes the API server log the requests of service accounts.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseComplete]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts"]
- level: None
`

// writeFiles writes the configuration files of the API server and its clients.
func (c *Cluster) writeFiles() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key),
	})
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: testkube, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: admin, context: {cluster: testkube, user: admin}}]
current-context: admin
`, c.URL, c.CA, AdminToken)
	for name, content := range map[string][]byte{
		"sa.key":     private,
		"audit.yml":  []byte(auditPolicy),
		"tokens.csv": []byte(AdminToken + ",admin,admin,system:masters\n"),
		"kubeconfig": []byte(kubeconfig),
	} {
		if err := os.WriteFile(filepath.Join(c.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// StartAPI restarts the API server after StopAPI, with the same data, and returns when it accepts
// requests.
func (c *Cluster) StartAPI() error {
	key, services := filepath.Join(c.dir, "sa.key"), "10.96.0.0/16"
	if c.listen.Addr().Is6() {
		services = "fd00:96::/112"
	}
	api, err := start(c.binary, filepath.Join(c.dir, "apiserver.log"), "kube-apiserver",
		"--etcd-servers="+c.etcdURL,
		"--bind-address="+c.listen.Addr().String(), "--advertise-address="+c.listen.Addr().String(),
		fmt.Sprintf("--secure-port=%d", c.listen.Port()),
		"--cert-dir="+filepath.Join(c.dir, "cert"),
		"--service-cluster-ip-range="+services,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--token-auth-file="+filepath.Join(c.dir, "tokens.csv"), "--authorization-mode=RBAC",
		"--allow-privileged=true",
		"--endpoint-reconciler-type=none", "--profiling=false",
		"--audit-policy-file="+filepath.Join(c.dir, "audit.yml"),
		"--audit-log-path="+filepath.Join(c.dir, "audit.log"))
	if err != nil {
		return err
	}
	c.api = api
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		status, _, err := c.Do(ctx, Request{Method: http.MethodGet, Path: "/readyz"})
		if err == nil && status == http.StatusOK {
			tick.Stop()
			return nil
		}
		select {
		case <-api.done:
			return fmt.Errorf("kube-apiserver exited: %w\n%s", api.err, api.tail())
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver is not ready (%d, %w)\n%s", status, err, api.tail())
		case <-tick.C:
		}
	}
}

// StopAPI stops the API server, either gracefully or by SIGKILL. etcd continues to run.
func (c *Cluster) StopAPI(graceful bool) error {
	c.closeIdle()
	if graceful {
		return c.api.stop(syscall.SIGTERM)
	}
	return c.api.stop(syscall.SIGKILL)
}

// AllocateCIDRs starts the controller that assigns a /24 of an IPv4 range and a /64 of an IPv6
// range to every node. ranges holds one or both, separated by a comma.
func (c *Cluster) AllocateCIDRs(ranges string) error {
	var err error
	c.ipam, err = start(c.binary, filepath.Join(c.dir, "node-ipam.log"), "node-ipam",
		"--kubeconfig="+c.Kubeconfig, "--cluster-cidr="+ranges)
	return err
}

// Close stops all processes. The API server is stopped first: it does not exit without its etcd.
func (c *Cluster) Close() error {
	c.closeIdle()
	var errs []error
	for _, p := range []*process{c.ipam, c.api, c.etcd} {
		if p != nil {
			errs = append(errs, p.stop(syscall.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// closeIdle closes the idle connections to the API server.
func (c *Cluster) closeIdle() {
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
}

// process is a running subcommand of the binary.
type process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{}
	err       error // exit error; valid after done is closed
}

func start(binary, log, name string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(binary, append([]string{name}, args...)...)
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// Its loopback client would otherwise use a proxy.
	p.cmd.Env = append(os.Environ(), "NO_PROXY=*")
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stopTimeout bounds a graceful stop, which took 3 s for the API server.
const stopTimeout = 30 * time.Second

// stop sends a signal and waits for the exit. After stopTimeout it kills the process.
func (p *process) stop(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
	}
	// Kill of a child fails only if it has just exited.
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not exit within %v of %v", p.name, stopTimeout, s)
}

// tail returns the last 10 lines of the log.
func (p *process) tail() []byte {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-10):], []byte("\n"))
}

// freePorts returns n ports that are currently free.
func freePorts(a netip.Addr, n int) ([]netip.AddrPort, error) {
	var ports []netip.AddrPort
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		if err != nil {
			return nil, fmt.Errorf("find a free port on %s: %w", a, err)
		}
		defer l.Close() // keep it open until return, so that the ports differ
		ports = append(ports, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return ports, nil
}
