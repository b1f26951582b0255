package main

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// Environment variables with the paths of external programs for compatibility tests. If one is not
// set, its tests are skipped.
const (
	flanneldVariable = "WEFT_FLANNELD"
	etcdVariable     = "WEFT_ETCD"
)

// otherProgram returns the path of the program in a variable.
func otherProgram(t *testing.T, variable, what string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf("NOT TESTED: %s; set %s to its path", what, variable)
	}
	return path
}

func TestNetnsFlannelFormats(t *testing.T) {
	for _, mode := range []string{"auto", "off"} {
		t.Run("fast path "+mode, func(t *testing.T) {
			c := newCluster(t, lab.Options{}, clusterNetwork)
			c.checkTwoNodes(c.up("--fast-path=" + mode))
		})
	}
}

// TestNetnsExternalEtcd runs the same checks with an external server, such as Debian's 3.4.
func TestNetnsExternalEtcd(t *testing.T) {
	server := otherProgram(t, etcdVariable, "a real etcd server")
	lab.SkipWithoutTUN(t)
	c := &cluster{Lab: lab.Start(t, lab.Options{}), t: t}
	_, err := c.Root.Start([]string{server, "--data-dir", "/run/etcd", "--listen-client-urls", c.endpoint(),
		"--advertise-client-urls", c.endpoint(), "--listen-peer-urls", "http://127.0.0.1:2380"})
	if err != nil {
		t.Fatal(err)
	}
	c.connect()
	await(t, patience, "etcd answers", func() error {
		_, err := c.leases()
		return err
	})
	c.put(clusterPrefix+"/config", clusterNetwork)
	c.checkTwoNodes(c.up())
}

// checkTwoNodes checks everything that other programs read, and the traffic.
func (c *cluster) checkTwoNodes(ds []*member) {
	c.t.Helper()
	for _, d := range ds {
		c.checkKey(d)
		d.checkEnv()
		d.checkDevice()
		d.checkSocket()
	}
	c.awaitLeases(patience, keys(ds))
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	c.checkTraffic(a, b)
	c.checkTraffic(b, a)
	for _, d := range ds {
		if drops := d.drops(); len(drops) > 0 {
			c.t.Errorf("%s dropped %v", d.node.Name, drops)
		}
		fast := d.status().Traffic.FastPath.Active
		d.stop()
		if d.node.HasLink("flannel0") != fast { // it forwards without a daemon
			c.t.Errorf("%s: device exists %v, want %v", d.node.Name, !fast, fast)
		}
	}
	c.awaitLeases(patience, keys(ds)) // kept for the next start
}

func (c *cluster) checkKey(d *member) {
	c.t.Helper()
	r, err := c.client.Get(c.t.Context(), clusterPrefix+"/subnets/"+d.key())
	if err != nil || len(r.Kvs) != 1 {
		c.t.Fatalf("%s: %+v, %v", d.key(), r, err)
	}
	kv := r.Kvs[0]
	if got, want := string(kv.Value), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, d.node.Addr); got != want {
		c.t.Errorf("%s: value %s, want %s", kv.Key, got, want)
	}
	ttl, err := c.client.TimeToLive(c.t.Context(), clientv3.LeaseID(kv.Lease))
	if err != nil || ttl.GrantedTTL != 86400 || ttl.TTL < 86400-int64(patience/time.Second) {
		c.t.Errorf("%s: %+v, %v: want a lease of a day", kv.Key, ttl, err)
	}
}

func (d *member) checkEnv() {
	d.t.Helper()
	b, err := os.ReadFile(d.node.Path("flannel/subnet.env"))
	gateway := netip.PrefixFrom(d.env().Subnet.Masked().Addr().Next(), 24)
	want := fmt.Sprintf("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
		gateway)
	if err != nil || string(b) != want {
		d.t.Errorf("%s: subnet.env is %q, %v, want %q", d.node.Name, b, err, want)
	}
	info, err := os.Stat(d.node.Path("flannel/subnet.env"))
	if err != nil || info.Mode().Perm() != 0o644 {
		d.t.Errorf("%s: subnet.env has mode %v, %v", d.node.Name, info.Mode(), err)
	}
}

func (d *member) checkDevice() {
	d.t.Helper()
	l, err := d.node.Link("flannel0")
	if err != nil {
		d.t.Fatal(err)
	}
	own := netip.PrefixFrom(d.env().Subnet.Masked().Addr(), 32)
	if l.Kind != "tuntap" || l.MTU != 1472 || !l.Up || !slices.Equal(l.Addrs, []netip.Prefix{own}) ||
		l.TxQueueLen < 1000 {
		d.t.Errorf("%s: device %+v, want a TUN that is up, MTU 1472, address %s and a queue that holds a burst",
			d.node.Name, l, own)
	}
	routes, err := d.node.Routes()
	if err != nil {
		d.t.Fatal(err)
	}
	var ours []lab.Route
	for _, r := range routes {
		if r.Device == "flannel0" {
			ours = append(ours, r)
		}
	}
	network := netip.MustParsePrefix("10.5.0.0/16")
	if len(ours) != 1 || ours[0].Dst != network || ours[0].Scope != 0 || ours[0].Via.IsValid() ||
		ours[0].Source.IsValid() {
		d.t.Errorf("%s: routes %+v, want one: %s dev flannel0, global, without a gateway and a source", d.node.Name,
			ours, network)
	}
}

// checkSocket checks that the daemon's socket is bound to the address of the interface and
// flannel's port, not to the wildcard address.
func (d *member) checkSocket() {
	d.t.Helper()
	ip := d.node.Addr.As4()
	slices.Reverse(ip[:])
	want := fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(ip[:])), udpPort)
	err := d.node.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/udp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); strings.HasSuffix(f[1], fmt.Sprintf(":%04X", udpPort)) && f[1] != want {
				return fmt.Errorf("a socket is bound to %s, want %s", f[1], want)
			}
		}
		if !strings.Contains(string(b), want) {
			return fmt.Errorf("no socket is bound to %s", want)
		}
		return nil
	})
	if err != nil {
		d.t.Error(err)
	}
}

// checkTraffic sends small packets, unfragmented packets of the full MTU, and streams from one pod
// to another.
func (c *cluster) checkTraffic(from, to *lab.Pod) {
	c.t.Helper()
	for _, size := range []int{84, 1428, 1472} {
		r, err := from.Ping(c.t.Context(), to.Addr,
			lab.Ping{Count: 5, Interval: time.Millisecond, Size: size, DontFragment: true})
		if err != nil || r.Received != 5 {
			c.t.Errorf("pings of %d bytes from %s to %s: %+v, %v", size, from.Name, to.Name, r, err)
		}
	}
	if err := lab.CheckTCP(c.t.Context(), from.NS, to.NS, to.Addr, 4<<20); err != nil {
		c.t.Error(err)
	}
	if err := lab.CheckUDP(c.t.Context(), from.NS, to.NS, to.Addr, 0, 1, 1400, 1444, 5000); err != nil {
		c.t.Error(err)
	}
}

// TestNetnsMixedWithFlannel runs flannel on one node and weftd on the other, with one etcd.
func TestNetnsMixedWithFlannel(t *testing.T) {
	flanneld := otherProgram(t, flanneldVariable, "a real flannel daemon on the other node")
	for _, first := range []string{"flannel", "weftd"} {
		t.Run(first+" first", func(t *testing.T) {
			c := newCluster(t, lab.Options{}, clusterNetwork)
			theirs, ours := c.Nodes[0], c.Nodes[1]
			var d *member
			if first == "weftd" {
				d = c.start(ours)
				d.awaitReady()
			}
			_, err := theirs.Start([]string{flanneld, "--etcd-endpoints=" + c.endpoint(),
				"--iptables-forward-rules=false"})
			if err != nil {
				t.Fatal(err)
			}
			await(t, patience, "flannel's subnet.env", func() error {
				env, err := subnetenv.Read(theirs.Path("flannel/subnet.env"))
				if err != nil {
					return err
				}
				return theirs.Attach(env)
			})
			if first == "flannel" {
				d = c.start(ours)
				d.awaitReady()
			}
			d.attach()
			c.awaitMesh()
			c.checkTraffic(theirs.Pods[0], ours.Pods[0])
			c.checkTraffic(ours.Pods[0], theirs.Pods[0])
			if drops := d.drops(); len(drops) > 0 {
				t.Errorf("weftd dropped %v", drops)
			}
			d.stop()
		})
	}
}
