package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/bench"
	"weft/cmd/control"
	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// The tests with a cluster run several daemons, each a process in a node of a lab, with a real etcd
// server. The daemon is the test binary itself, so the race detector covers it too.

const (
	clusterPrefix  = "/coreos.com/network"
	clusterNetwork = `{"Network":"10.5.0.0/16"}`
	clusterHealth  = 8286
	clusterEtcd    = 2379
	udpPort        = 8285
)

// cluster is a lab with an etcd server in its root namespace.
type cluster struct {
	*lab.Lab
	t      *testing.T
	etcd   *testetcd.Server // nil if the server is an external program
	client *clientv3.Client
}

// member is a node's daemon.
type member struct {
	*lab.Process
	node *lab.Node
	t    *testing.T
}

// newCluster builds a lab whose etcd holds the network config.
func newCluster(t *testing.T, o lab.Options, network string) *cluster {
	t.Helper()
	lab.SkipWithoutTUN(t)
	c := &cluster{Lab: lab.Start(t, o), t: t}
	var err error
	c.etcd, err = testetcd.Start(testetcd.Config{
		Dir: c.Root.Path("etcd"), Listen: netip.AddrPortFrom(c.Root.Addr, clusterEtcd)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.etcd.Close() })
	c.connect()
	c.put(clusterPrefix+"/config", network)
	return c
}

func (c *cluster) endpoint() string {
	return "http://" + netip.AddrPortFrom(c.Root.Addr, clusterEtcd).String()
}

func (c *cluster) connect() {
	c.t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.endpoint()}, DialTimeout: patience,
		Logger: zap.NewNop()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.client = client
	c.t.Cleanup(func() { client.Close() })
}

func (c *cluster) put(key, value string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if _, err := c.client.Put(ctx, key, value); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) delete(key string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if r, err := c.client.Delete(ctx, key); err != nil || r.Deleted != 1 {
		c.t.Fatalf("delete %s: %+v, %v", key, r, err)
	}
}

// leases returns the lease keys, without their prefix, and their values.
func (c *cluster) leases() (map[string]string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
	defer cancel()
	r, err := c.client.Get(ctx, clusterPrefix+"/subnets", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	keys := map[string]string{}
	for _, kv := range r.Kvs {
		keys[strings.TrimPrefix(string(kv.Key), clusterPrefix+"/subnets/")] = string(kv.Value)
	}
	return keys, nil
}

// awaitLeases waits until etcd holds exactly these keys.
func (c *cluster) awaitLeases(limit time.Duration, want []string) {
	c.t.Helper()
	await(c.t, limit, "leases in etcd", func() error {
		have, err := c.leases()
		if err == nil && !slices.Equal(slices.Sorted(maps.Keys(have)), want) {
			err = fmt.Errorf("%v, want %v", slices.Sorted(maps.Keys(have)), want)
		}
		return err
	})
}

// start runs the daemon of a node.
func (c *cluster) start(n *lab.Node, flags ...string) *member {
	c.t.Helper()
	return c.startWith(n, append([]string{"--etcd-endpoints=" + c.endpoint()}, flags...)...)
}

// startWith runs the daemon of a node without naming a store.
func (c *cluster) startWith(n *lab.Node, flags ...string) *member {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	p, err := n.Start(append([]string{self, fmt.Sprintf("--healthz-port=%d", clusterHealth)}, flags...), asDaemon+"=1")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if strings.Contains(p.Log(), "DATA RACE") {
			c.t.Errorf("data race in the daemon of %s:\n%s", n.Name, p.Log())
		}
	})
	return &member{Process: p, node: n, t: c.t}
}

// up starts a daemon on every node, waits for all of them and attaches the pods.
func (c *cluster) up(flags ...string) []*member {
	c.t.Helper()
	var ds []*member
	for _, n := range c.Nodes {
		ds = append(ds, c.start(n, flags...))
	}
	for _, d := range ds {
		d.awaitReady()
		d.attach()
	}
	c.awaitMesh()
	return ds
}

// awaitMesh waits until every pod that is attached reaches every other one.
func (c *cluster) awaitMesh() {
	c.t.Helper()
	for _, a := range c.Nodes {
		for _, b := range c.Nodes {
			if a != b && len(a.Pods) > 0 && a.Pods[0].Addr.IsValid() && b.Pods[0].Addr.IsValid() {
				c.awaitAnswer(patience, a.Pods[0], b.Pods[0])
			}
		}
	}
}

// awaitAnswer waits until a pod answers another one.
func (c *cluster) awaitAnswer(limit time.Duration, from, to *lab.Pod) {
	c.t.Helper()
	await(c.t, limit, from.Name+" reaches "+to.Name, func() error {
		r, err := from.Ping(c.t.Context(), to.Addr, lab.Ping{Timeout: 100 * time.Millisecond})
		if err == nil && r.Received == 0 {
			err = fmt.Errorf("no answer from %s: %+v", to.Addr, r)
		}
		return err
	})
}

// steadyPing starts continuous pings, which test both directions. check stops them and fails the
// test if more than lost answers are missing.
func (c *cluster) steadyPing(from, to *lab.Pod) (p *lab.Pinger, check func(lost int)) {
	c.t.Helper()
	p, err := from.StartPing(c.t.Context(), to.Addr, lab.Ping{Count: -1, Interval: 5 * time.Millisecond})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { p.Stop() })
	return p, func(lost int) {
		c.t.Helper()
		r := p.Stop()
		if r.Received == 0 || r.Lost() > lost || r.SendErrors > 0 || r.Duplicates > 0 {
			r.RTT = nil
			c.t.Errorf("pings from %s to %s: %d lost, want at most %d: %+v", from.Name, to.Name, r.Lost(), lost, r)
		}
	}
}

// awaitAnswers waits for a number of further answers.
func (c *cluster) awaitAnswers(limit time.Duration, p *lab.Pinger, more int) {
	c.t.Helper()
	want := p.Result().Received + more
	await(c.t, limit, "answers", func() error {
		if r := p.Result(); r.Received < want {
			return fmt.Errorf("%d of %d", r.Received, want)
		}
		return nil
	})
}

func (d *member) health() netip.AddrPort { return netip.AddrPortFrom(d.node.Addr, clusterHealth) }

// awaitReady waits until the daemon is ready. It must not exit.
func (d *member) awaitReady() {
	d.t.Helper()
	d.awaitPage(patience, "/readyz", func(_ []byte, err error) error { return err })
}

// awaitNotReady waits until the daemon is not ready for a reason that contains text.
func (d *member) awaitNotReady(text string) {
	d.t.Helper()
	d.awaitPage(patience, "/readyz", func(_ []byte, err error) error {
		if err == nil {
			return errors.New("it is ready")
		}
		if !strings.Contains(err.Error(), text) {
			return fmt.Errorf("want %q: %w", text, err)
		}
		return nil
	})
}

func (d *member) awaitPage(limit time.Duration, path string, ok func([]byte, error) error) {
	d.t.Helper()
	ended := errors.New("daemon exited")
	ctx, cancel := context.WithCancelCause(d.t.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-d.Done():
			cancel(ended)
		case <-ctx.Done():
		}
	}()
	err := lab.Await(ctx, limit, d.node.Name+" "+path, func() error { return ok(bench.GetInside(ctx, d.node.NS, d.health(), path)) })
	if err != nil {
		d.t.Fatal(err)
	}
}

// status reads /status.
func (d *member) status() control.Status {
	d.t.Helper()
	var s control.Status
	b, err := bench.GetInside(d.t.Context(), d.node.NS, d.health(), "/status")
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		d.t.Fatalf("%s: status: %v", d.node.Name, err)
	}
	return s
}

// metrics reads /metrics.
func (d *member) metrics() bench.Metrics {
	d.t.Helper()
	m, err := bench.Scrape(d.t.Context(), d.health())
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

// drops returns the numbers of dropped packets by reason, except those that the kernel sends into
// any new device (IPv6 neighbour discovery).
func (d *member) drops() map[string]float64 {
	d.t.Helper()
	drops := map[string]float64{}
	for sample, v := range d.metrics() {
		reason, ok := strings.CutPrefix(sample, `weft_drops_total{reason="`)
		reason = strings.TrimSuffix(reason, `"}`)
		if ok && v > 0 && reason != "multicast" && reason != "neighbour_message" {
			drops[reason] = v
		}
	}
	return drops
}

// awaitMetric waits until a sample has a value.
func (d *member) awaitMetric(limit time.Duration, sample string, ok func(float64) bool) {
	d.t.Helper()
	await(d.t, limit, d.node.Name+" "+sample, func() error {
		m, err := bench.Scrape(d.t.Context(), d.health())
		if err == nil && !ok(m[sample]) {
			err = fmt.Errorf("is %v", m[sample])
		}
		return err
	})
}

// env reads the daemon's subnet.env.
func (d *member) env() subnetenv.File {
	d.t.Helper()
	env, err := subnetenv.Read(d.node.Path("flannel/subnet.env"))
	if err != nil {
		d.t.Fatal(err)
	}
	return env
}

func (d *member) attach() {
	d.t.Helper()
	if err := d.node.Attach(d.env()); err != nil {
		d.t.Fatal(err)
	}
}

// key returns the daemon's lease key without its prefix.
func (d *member) key() string {
	d.t.Helper()
	p := d.env().Subnet.Masked()
	return fmt.Sprintf("%s-%d", p.Addr(), p.Bits())
}

// logged counts the occurrences of text in the log.
func (d *member) logged(text string) int { return bytes.Count([]byte(d.Log()), []byte(text)) }

// stop stops the daemon and checks the exit code and the duration.
func (d *member) stop() {
	d.t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	code, err := d.Stop(ctx)
	if took := time.Since(begin); err != nil || code != 0 || took > 2*time.Second {
		d.t.Errorf("%s: exit %d after %v, %v", d.node.Name, code, took, err)
	}
}

func await(t *testing.T, limit time.Duration, what string, ok func() error) {
	t.Helper()
	if err := lab.Await(t.Context(), limit, what, ok); err != nil {
		t.Fatal(err)
	}
}

func keys(ds []*member) []string {
	var all []string
	for _, d := range ds {
		all = append(all, d.key())
	}
	slices.Sort(all)
	return all
}

func (c *cluster) writeFile(path, content string) {
	c.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}
