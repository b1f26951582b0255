package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/ctrl"
	"weft/deploy/lab"
	"weft/lease"
	"weft/lease/subnetenv"
)

// slowEnv is the factor by which this machine is slower than usual, as an emulated one is.
const slowEnv = "WEFT_TEST_SLOW"

// patience extends a time limit on a slow machine.
func patience(d time.Duration) time.Duration { return d * time.Duration(slowness()) }

func slowness() int {
	if n, err := strconv.Atoi(os.Getenv(slowEnv)); err == nil && n > 1 {
		return n
	}
	return 1
}

// cluster is a lab whose nodes run the test daemon. It takes the role of the lease store.
type cluster struct {
	*lab.Lab
	t       *testing.T
	network string
	other   map[int]string // network configs of single nodes
	options LocalOptions
	daemons []*lab.Process
	leases  []lease.Lease
	seen    []report
}

// startCluster starts a daemon with that network config on each node and waits until all are
// synced.
func startCluster(t *testing.T, backend string, o lab.Options) *cluster {
	t.Helper()
	c := &cluster{t: t, Lab: lab.Start(t, o), options: LocalOptions{KeyFile: "/run/wgkey"},
		network: `{"Network":"10.5.0.0/16","Backend":` + backend + `}`}
	if len(o.Underlay6) > 0 {
		c.network = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":` + backend + `}`
	}
	c.leases, c.seen = make([]lease.Lease, len(c.Nodes)), make([]report, len(c.Nodes))
	c.daemons = make([]*lab.Process, len(c.Nodes))
	for i := range c.Nodes {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.daemons {
			c.stop(i)
		}
	})
	c.converge()
	return c
}

func (c *cluster) start(i int) {
	c.t.Helper()
	families := ipv4Env
	if c.Nodes[i].Addr6.IsValid() {
		families = bothEnv
	}
	p, err := c.Nodes[i].Start([]string{"/proc/self/exe"}, daemonEnv+"="+families)
	c.must(err)
	c.daemons[i] = p
}

// stop ends a daemon by SIGTERM and fails if that takes long.
func (c *cluster) stop(i int) {
	c.t.Helper()
	p := c.daemons[i]
	if p == nil {
		return
	}
	c.daemons[i] = nil
	// During cleanup the test's own context has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), patience(10*time.Second))
	defer cancel()
	start := time.Now()
	status, err := p.Stop(ctx)
	if err != nil {
		c.t.Log(p.Signal(syscall.SIGQUIT)) // log the goroutines
		<-p.Done()
	}
	if err != nil || status != 0 {
		c.t.Errorf("daemon %d ended with %d, %v", i, status, err)
	}
	if took := time.Since(start); took > patience(2*time.Second) {
		c.t.Errorf("daemon %d took %v to end", i, took)
	}
}

// restart restarts a daemon with a new order.
func (c *cluster) restart(i int) {
	c.t.Helper()
	c.stop(i)
	c.must(os.Remove(c.Nodes[i].Path(strings.TrimPrefix(orderFile, "/run/"))))
	c.start(i)
	c.converge()
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// order writes the order of daemon i.
func (c *cluster) order(i int, all []lease.Lease) time.Time {
	c.t.Helper()
	config := c.network
	if other, ok := c.other[i]; ok {
		config = other
	}
	b, err := json.Marshal(order{Network: json.RawMessage(config), Self: c.leases[i], All: all, Options: c.options})
	c.must(err)
	path := c.Nodes[i].Path(strings.TrimPrefix(orderFile, "/run/"))
	c.must(writeFile(path, b))
	info, err := os.Stat(path)
	c.must(err)
	return info.ModTime()
}

// report reads the report of daemon i.
func (c *cluster) report(i int) (report, error) {
	var r report
	b, err := os.ReadFile(c.Nodes[i].Path(strings.TrimPrefix(reportFile, "/run/")))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

// converge acts as the store: it collects the published attributes, passes all leases to all
// daemons and waits until they are applied.
func (c *cluster) converge() {
	c.t.Helper()
	for i := range c.Nodes {
		c.await(i, c.order(i, nil), false)
	}
	for i, n := range c.Nodes {
		a := c.seen[i].Attrs
		l := lease.Lease{Node: n.Name, Subnet: prefix(fmt.Sprintf("10.5.%d.0/24", i+1))}
		l.PublicIP, l.BackendType, l.BackendData = a.PublicIP, a.BackendType, a.BackendData
		if n.Addr6.IsValid() {
			l.Subnet6, l.PublicIPv6, l.BackendV6Data = prefix(fmt.Sprintf("fd10:5:0:%d::/64", i+1)), a.PublicIPv6,
				a.BackendV6Data
		}
		c.leases[i] = l
	}
	for i := range c.Nodes {
		c.await(i, c.order(i, c.leases), true)
	}
}

// await waits until daemon i has applied the order of that time.
func (c *cluster) await(i int, at time.Time, synced bool) {
	c.t.Helper()
	c.must(lab.Await(c.t.Context(), patience(10*time.Second), "daemon of "+c.Nodes[i].Name, func() error {
		r, err := c.report(i)
		if err != nil {
			return err
		}
		if !r.Order.Equal(at) || synced && !r.Synced {
			return fmt.Errorf("report %+v", r)
		}
		c.seen[i] = r
		return nil
	}))
}

// attach gives the pods addresses of their node's lease and the backend's MTU.
func (c *cluster) attach() {
	c.t.Helper()
	for i, n := range c.Nodes {
		env := subnetenv.File{Subnet: netip.PrefixFrom(c.leases[i].Subnet.Addr().Next(), 24), MTU: c.seen[i].MTU}
		if c.leases[i].Subnet6.IsValid() {
			env.Subnet6 = netip.PrefixFrom(c.leases[i].Subnet6.Addr().Next(), 64)
		}
		c.must(n.Attach(env))
	}
}

// connected checks pings between the first pods of two nodes, in both directions, with small and
// MTU-sized packets, and TCP and UDP.
func (c *cluster) connected(a, b *lab.Node) {
	c.t.Helper()
	ctx := c.t.Context()
	for _, way := range [][2]*lab.Pod{{a.Pods[0], b.Pods[0]}, {b.Pods[0], a.Pods[0]}} {
		targets := []netip.Addr{way[1].Addr}
		if way[1].Addr6.IsValid() {
			targets = append(targets, way[1].Addr6)
		}
		for _, to := range targets {
			for _, p := range []lab.Ping{{Count: 2}, {Count: 2, Size: c.seen[0].MTU, DontFragment: true}} {
				if to.Is6() {
					p.DontFragment, p.Size = false, 0
				}
				c.must(lab.Await(ctx, patience(5*time.Second),
					fmt.Sprintf("ping from %s to %v with %d bytes", way[0].Name, to, p.Size), func() error {
						got, err := way[0].Ping(ctx, to, p)
						if err == nil && got.Lost() > 0 {
							err = fmt.Errorf("%+v", got)
						}
						return err
					}))
			}
			c.must(lab.CheckTCP(ctx, way[0].NS, way[1].NS, to, 2<<20/int64(slowness())))
			c.must(lab.CheckUDP(ctx, way[0].NS, way[1].NS, to, 1, 1000, 1300))
		}
	}
}

// on opens the kernel of a node and calls do in the node's namespace.
func (c *cluster) on(n *lab.Node, do func(k *ctrl.Kernel) error) {
	c.t.Helper()
	c.must(n.Do(func() error {
		k, err := ctrl.OpenKernel(nil)
		if err != nil {
			return err
		}
		defer k.Close()
		return do(k)
	}))
}

// state returns the state of a node's kernel.
func (c *cluster) state(n *lab.Node) ctrl.State {
	c.t.Helper()
	var s ctrl.State
	c.on(n, func(k *ctrl.Kernel) (err error) {
		s, err = k.Read(ctrl.OverlayName)
		return err
	})
	return s
}

// overlay returns the overlay's part of a node's kernel state, without the kernel's link-local
// addresses.
func (c *cluster) overlay(n *lab.Node) ctrl.State {
	c.t.Helper()
	s := c.state(n)
	s.Links = slices.DeleteFunc(s.Links, func(l ctrl.Link) bool { return !ctrl.OverlayName(l.Name) })
	s.Addrs = slices.DeleteFunc(s.Addrs, func(a ctrl.Addr) bool {
		return !ctrl.OverlayName(a.Dev) ||
			a.Prefix.Addr().IsLinkLocalUnicast()
	})
	s.Routes = slices.DeleteFunc(s.Routes, func(r ctrl.Route) bool { return r.Protocol != ctrl.RouteProtocol })
	for i := range s.Links {
		s.Links[i].Index = 0
	}
	return s
}

// missing lists the operations that would turn a node's kernel state into want.
func (c *cluster) missing(n *lab.Node, want ctrl.State) []string {
	c.t.Helper()
	ops, err := difference(c.state(n), want)
	c.must(err)
	return ops
}

// breakage is a change of a node's kernel state by another program.
type breakage struct {
	name string
	do   func(k *ctrl.Kernel) error
}

// heals applies each breakage to node a and expects the repair within a second, while pods ping. It
// logs the lost packets.
func (c *cluster) heals(a, b *lab.Node, breaks []breakage) {
	c.t.Helper()
	ctx := c.t.Context()
	for _, x := range breaks {
		c.quiet(a)
		before := c.overlay(a)
		repairs := c.repairs(a)
		ping, err := a.Pods[0].StartPing(ctx, b.Pods[0].Addr,
			lab.Ping{Count: -1, Interval: patience(5 * time.Millisecond), Timeout: patience(100 * time.Millisecond)})
		c.must(err)
		c.on(a, x.do)
		start := time.Now()
		err = lab.Await(ctx, patience(3*time.Second), x.name, func() error {
			if c.repairs(a) == repairs {
				return errors.New("no repair so far")
			}
			if m := c.missing(a, before); len(m) > 0 {
				return fmt.Errorf("still %q", m)
			}
			return nil
		})
		took := time.Since(start)
		c.must(err)
		c.must(lab.Await(ctx, patience(3*time.Second), x.name+": ping again", func() error {
			got, err := a.Pods[0].Ping(ctx, b.Pods[0].Addr, lab.Ping{Timeout: patience(200 * time.Millisecond)})
			if err == nil && got.Lost() > 0 {
				err = fmt.Errorf("%+v", got)
			}
			return err
		}))
		r := ping.Stop()
		c.t.Logf("%s: repaired after %v, %d of %d packets lost", x.name, took.Round(time.Millisecond), r.Lost(), r.Sent)
		if took > patience(time.Second) {
			c.t.Errorf("%s: repaired only after %v", x.name, took)
		}
	}
}

func (c *cluster) index(n *lab.Node) int {
	for i, x := range c.Nodes {
		if x == n {
			return i
		}
	}
	c.t.Fatalf("no node %s", n.Name)
	return 0
}

func (c *cluster) repairs(n *lab.Node) uint64 {
	r, err := c.report(c.index(n))
	if err != nil {
		return 0
	}
	return r.Repairs
}

// quiet waits until the daemon of a node has been synced for longer than its debounce time.
func (c *cluster) quiet(n *lab.Node) {
	c.t.Helper()
	since, last := time.Now(), c.repairs(n)
	c.must(lab.Await(c.t.Context(), patience(10*time.Second), n.Name+" is quiet", func() error {
		r, err := c.report(c.index(n))
		if err != nil {
			return err
		}
		if r.Repairs != last || !r.Synced {
			since, last = time.Now(), r.Repairs
		}
		if time.Since(since) < patience(4*ctrl.Debounce(0)) {
			return errors.New("settling")
		}
		return nil
	}))
}
