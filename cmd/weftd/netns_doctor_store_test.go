package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/deploy/lab"
	"weft/lease/kube/testkube"
)

// storeProxy passes TCP connections on to etcd, and changes the answers on the way.
type storeProxy struct {
	mu     sync.Mutex
	target string
	change func([]byte) []byte // of each piece of an answer
	conns  []net.Conn
}

// startProxy starts a proxy of the lab's etcd on a port of root.
func (c *cluster) startProxy(port uint16) *storeProxy {
	c.t.Helper()
	p := &storeProxy{target: netip.AddrPortFrom(c.Root.Addr, clusterEtcd).String()}
	p.set(nil)
	l, err := net.Listen("tcp", netip.AddrPortFrom(c.Root.Addr, port).String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		l.Close()
		p.cut()
	})
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

func (p *storeProxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns = append(p.conns, client, server)
	p.mu.Unlock()
	go func() {
		// It ends with the connection, which is closed below.
		_, _ = io.Copy(server, client)
		server.Close()
	}()
	buffer := make([]byte, 1<<16)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		change := p.change
		p.mu.Unlock()
		if _, err := client.Write(change(buffer[:n])); err != nil {
			return
		}
	}
}

// set sets the change of answers; nil means none.
func (p *storeProxy) set(change func([]byte) []byte) {
	if change == nil {
		change = func(b []byte) []byte { return b }
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.change = change
}

// cut closes all connections.
func (p *storeProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// redirect closes all connections, and opens further ones to another server.
func (p *storeProxy) redirect(to netip.AddrPort) {
	p.mu.Lock()
	p.target = to.String()
	p.mu.Unlock()
	p.cut()
}

// answers returns a fault of the store that a change of its answers makes.
func (p *storeProxy) answers(name string, change func([]byte) []byte) fault {
	return fault{name: name, produce: func(*testing.T) func() {
		p.set(change)
		return func() { p.set(nil) }
	}}
}

// slow delays each piece of an answer.
func slow(b []byte) []byte {
	time.Sleep(1200 * time.Millisecond)
	return b
}

// slowRPC delays the answers to the daemon, and not those to the doctor's plain request.
func slowRPC(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("HTTP/1.")) {
		return b
	}
	return slow(b)
}

// hourAgo sets the clock of a server back, as the Date of its answers shows it.
func hourAgo(b []byte) []byte {
	begin := bytes.Index(b, []byte("Date: "))
	if begin < 0 {
		return b
	}
	begin += len("Date: ")
	end := begin + len(http.TimeFormat)
	if end > len(b) {
		return b
	}
	return slices.Concat(b[:begin], []byte(time.Now().UTC().Add(-time.Hour).Format(http.TimeFormat)), b[end:])
}

// TestNetnsDoctorStore produces faults of etcd, which the first node's daemon reaches by a proxy
// that is transparent otherwise.
func TestNetnsDoctorStore(t *testing.T) {
	const proxyPort, httpPort = 2380, 2381
	d := &doctorLab{cluster: newCluster(t, lab.Options{}, clusterNetwork)}
	proxy := d.startProxy(proxyPort)
	endpoint := "http://" + netip.AddrPortFrom(d.Root.Addr, proxyPort).String()
	d.startAll("--etcd-endpoints="+endpoint, "--etcd-username=weft", "--etcd-password=secret")
	d.check(socketPath, []fault{
		proxy.answers("store-slow", slow),
		proxy.answers("clock-skew", hourAgo),
		{name: "store-denied", produce: func(t *testing.T) func() { return d.denyWrites(t, proxy) }},
	})
	d.run("store-compacted", func() {
		proxy.set(slowRPC) // for time to see it: the daemon reads the whole list at once
		d.compactUnseen(proxy)
		d.expect(socketPath, "store-compacted")
		proxy.set(nil)
		d.expect(socketPath)
	})
	d.run("store-proxied", func() {
		d.serveHTTP(d.t, httpPort)
		d.daemons[0].stop()
		d.daemons[0] = d.startNamed(d.Nodes[0],
			"--etcd-endpoints=http://"+netip.AddrPortFrom(d.Root.Addr, httpPort).String())
		d.expect(socketPath, "store-proxied")
	})
}

// denyWrites lets etcd's users read only, and shortens the lease of the first node, so that its
// daemon has to renew it.
func (d *doctorLab) denyWrites(t *testing.T, p *storeProxy) (undo func()) {
	t.Helper()
	ctx, c := t.Context(), d.client
	all := clientv3.GetPrefixRangeEnd(clusterPrefix)
	steps := []func() error{
		func() error { _, err := c.UserAdd(ctx, "root", "r"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.UserAdd(ctx, "weft", "secret"); return err },
		func() error { _, err := c.RoleAdd(ctx, "reader"); return err },
		func() error {
			_, err := c.RoleGrantPermission(ctx, "reader", clusterPrefix, all,
				clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { _, err := c.UserGrantRole(ctx, "weft", "reader"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{d.endpoint()}, Username: "root",
		Password: "r", DialTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	p.cut()
	key := clusterPrefix + "/subnets/" + strings.ReplaceAll(d.daemons[0].env().Subnet.Masked().String(), "/", "-")
	lease, err := root.Grant(ctx, 600)
	if err == nil {
		_, err = root.Put(ctx, key, `{"PublicIP":"`+d.Nodes[0].Addr.String()+`","BackendData":null}`,
			clientv3.WithLease(lease.ID))
	}
	if err != nil {
		t.Error(err)
	}
	return func() {
		defer root.Close()
		if _, err := root.AuthDisable(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}
}

// compactUnseen changes and compacts etcd while the first node's daemon is cut off, so that it asks
// for a revision that is gone.
func (d *doctorLab) compactUnseen(p *storeProxy) {
	d.t.Helper()
	p.redirect(netip.AddrPortFrom(d.Root.Addr, 1)) // on which nothing listens
	var revision int64
	for i := range 3 {
		r, err := d.client.Put(d.t.Context(), clusterPrefix+"/other", fmt.Sprint(i))
		if err != nil {
			d.t.Fatal(err)
		}
		revision = r.Header.Revision
	}
	if _, err := d.client.Compact(d.t.Context(), revision); err != nil {
		d.t.Fatal(err)
	}
	p.redirect(netip.AddrPortFrom(d.Root.Addr, clusterEtcd))
}

// serveHTTP starts a proxy of etcd on a port of root that knows HTTP/1.1 only.
func (d *doctorLab) serveHTTP(t *testing.T, port uint16) {
	t.Helper()
	etcd, err := url.Parse(d.endpoint())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(d.Root.Addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: httputil.NewSingleHostReverseProxy(etcd), ReadHeaderTimeout: patience}
	go func() { _ = server.Serve(l) }() // until it is closed
	t.Cleanup(func() { server.Close() })
}

// TestNetnsDoctorKubernetes produces faults of a node of Kubernetes.
func TestNetnsDoctorKubernetes(t *testing.T) {
	c := &cluster{Lab: lab.Start(t, lab.Options{}), t: t}
	control, err := testkube.Start(c.Root.Addr, t.TempDir())
	if errors.Is(err, testkube.ErrNoBinary) {
		t.Skipf("NOT TESTED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	d := &doctorLab{cluster: c, flags: []string{"--cni-dir=/run/cni"}}
	start := func(n *lab.Node, cidrs ...string) *member {
		if err := control.AddNode(t.Context(), n.Name, cidrs...); err != nil {
			t.Fatal(err)
		}
		return d.startNamed(n, "--kube-subnet-mgr", "--kubeconfig-file="+control.Kubeconfig,
			"--net-config-path=/run/net-conf.json", "--node-name="+n.Name)
	}
	for i, n := range d.Nodes {
		c.writeFile(n.Path("net-conf.json"), `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`)
		d.shell(i, `mkdir /run/cni; echo '{"plugins":[{"type":"flannel"},{"type":"portmap"}]}' >/run/cni/10-flannel.conflist`)
	}
	d.daemons = []*member{start(d.Nodes[0])}
	d.expect(socketPath, "pod-cidr")
	d.daemons[0].stop()
	if err := control.DeleteNode(t.Context(), d.Nodes[0].Name); err != nil {
		t.Fatal(err)
	}
	d.daemons = []*member{start(d.Nodes[0], "10.5.1.0/24"), start(d.Nodes[1], "10.5.2.0/24")}
	for _, m := range d.daemons {
		m.awaitReady()
		m.attach()
	}
	d.awaitMesh()
	d.check(socketPath, []fault{
		{name: "cni-config-missing", make: "mv /run/cni/10-flannel.conflist /run",
			undo: "mv /run/10-flannel.conflist /run/cni"},
		{name: "cni-config-foreign", make: `echo '{"type":"cilium-cni"}' >/run/cni/05-cilium.conf`,
			undo: "rm /run/cni/05-cilium.conf"},
	})
}
