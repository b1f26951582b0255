package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// ipsecConfig returns a network config with a PSK of the character.
func ipsecConfig(psk, more string) string {
	return fmt.Sprintf(`{"Network":"10.5.0.0/16",%s"Backend":{"Type":"ipsec","PSK":"%s"}}`, more,
		strings.Repeat(psk, 96))
}

// needCharon skips the test on a host without charon.
func needCharon(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/usr/lib/ipsec/charon"); err != nil {
		if _, err := exec.LookPath("charon"); err != nil {
			t.Skip("NOT TESTED: IPsec: no charon (strongswan)")
		}
	}
}

// newIPsecCluster is newCluster on a host with charon and a kernel with ESP.
func newIPsecCluster(t *testing.T, o lab.Options, network string) *cluster {
	t.Helper()
	needCharon(t)
	c := newCluster(t, o, network)
	if err := c.Nodes[0].Do(checkESP); err != nil {
		t.Skipf("NOT TESTED: IPsec: the kernel takes no ESP security association: %v", err)
	}
	return c
}

// checkESP adds a security association and deletes it.
func checkESP() error {
	s := &netlink.XfrmState{
		Src: net.IPv4(192, 0, 2, 1), Dst: net.IPv4(192, 0, 2, 2), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL,
		Spi: 1, Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 20), ICVLen: 128},
	}
	if err := netlink.XfrmStateAdd(s); err != nil {
		return err
	}
	return netlink.XfrmStateDel(s)
}

// vmPatience bounds waits in an emulated machine, where these tests usually run.
const vmPatience = 3 * time.Minute

// emulatedLoss is how many pings, one per 5 ms, may be lost when keys are replaced. The node that
// is asked for new keys sends with them at once, and the other one has them once it has computed
// them, which takes long in an emulated machine.
const emulatedLoss = 100

// withoutRules is for a machine without iptables.
const withoutRules = "--iptables-forward-rules=false"

// upIPsec starts the daemons of nodes, waits until they are ready and attaches the pods.
func (c *cluster) upIPsec(nodes []*lab.Node) []*member {
	c.t.Helper()
	var ds []*member
	for _, n := range nodes {
		ds = append(ds, c.start(n, withoutRules, "-v=1"))
	}
	for _, d := range ds {
		d.awaitPage(vmPatience, "/readyz", func(_ []byte, err error) error { return err })
		d.attach()
	}
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				c.awaitAnswer(vmPatience, a.Pods[0], b.Pods[0])
			}
		}
	}
	return ds
}

// policies lists the IPsec policies of a node in the words of `ip xfrm policy`, sorted.
func policies(t *testing.T, n *lab.Node) []string {
	t.Helper()
	var lines []string
	err := n.Do(func() error {
		for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := netlink.XfrmPolicyList(fam)
			if err != nil {
				return err
			}
			for _, p := range all {
				if p.Dir > netlink.XFRM_DIR_FWD { // of a socket
					continue
				}
				line := fmt.Sprintf("%v %v %v", p.Dir, p.Src, p.Dst)
				for _, m := range p.Tmpls {
					line += fmt.Sprintf(" %v %v reqid %d", m.Src, m.Dst, m.Reqid)
				}
				lines = append(lines, line)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// spis lists the security associations of the overlay on a node.
func spis(t *testing.T, n *lab.Node) (found []int) {
	t.Helper()
	err := n.Do(func() error {
		all, err := netlink.XfrmStateList(netlink.FAMILY_ALL)
		for _, s := range all {
			if s.Reqid == 11 {
				found = append(found, s.Spi)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

// marker is a text in the payload of packets.
const marker = "this text must not be readable on the wire"

// wire records the frames on the ports of the underlay's bridge. On a node, the kernel also shows
// the packets that it has decrypted.
type wire struct {
	mu     sync.Mutex
	frames [][]byte
	stop   func()
}

// record starts a recording.
func (c *cluster) record() *wire {
	t := c.t
	t.Helper()
	var fd int
	err := c.Root.Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w, done := &wire{}, make(chan struct{})
	short := unix.NsecToTimeval(int64(50 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &short); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		defer unix.Close(fd)
		buffer := make([]byte, 1<<16)
		for ctx.Err() == nil {
			if n, _, err := unix.Recvfrom(fd, buffer, 0); err == nil {
				w.mu.Lock()
				w.frames = append(w.frames, bytes.Clone(buffer[:n]))
				w.mu.Unlock()
			}
		}
	}()
	w.stop = func() { cancel(); <-done }
	return w
}

// count returns the number of ESP packets and of those in UDP, and of frames with the marker.
func (w *wire) count() (esp, udp, clear int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		if len(f) < 34 {
			continue
		}
		ip := f[14:]
		switch {
		case bytes.Contains(f, []byte(marker)):
			clear++
		case ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_ESP, ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_ESP:
			esp++
		case ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_UDP && isESPInUDP(ip[20:]), ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_UDP &&
			isESPInUDP(ip[40:]):
			udp++
		}
	}
	return esp, udp, clear
}

// isESPInUDP reports whether a UDP datagram of port 4500 holds ESP rather than IKE, which begins
// with 4 zero bytes, or a keepalive (RFC 3948, section 2).
func isESPInUDP(udp []byte) bool {
	return len(udp) >= 12 && binary.BigEndian.Uint16(udp[2:]) == 4500 && binary.BigEndian.Uint32(udp[8:]) != 0
}

// checkESPTraffic sends marked packets both ways and checks that the wire has only ESP.
func (c *cluster) checkESPTraffic(ds []*member, a, b netip.Addr, encap bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), vmPatience)
	defer cancel()
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	w := c.record()
	size := ds[0].env().MTU
	for _, way := range []struct {
		from, to *lab.Pod
		addr     netip.Addr
	}{{from, to, b}, {to, from, a}} {
		// Both nodes may have negotiated at once; packets are lost while one of them computes the
		// second keys (XfrmAcquireError).
		await(c.t, vmPatience, fmt.Sprintf("5 pings of %d bytes from %s to %v", size, way.from.Name, way.addr), func() error {
			r, err := way.from.Ping(ctx, way.addr, lab.Ping{Count: 5, Size: size, DontFragment: true, Timeout: 5 * time.Second})
			if err == nil && r.Received != 5 {
				err = fmt.Errorf("%+v", r)
			}
			return err
		})
		if err := lab.CheckTCP(ctx, way.from.NS, way.to.NS, way.addr, 1<<20); err != nil {
			c.t.Error(err)
		}
	}
	sendMarked(c.t, from, netip.AddrPortFrom(b, 9))
	sendMarked(c.t, to, netip.AddrPortFrom(a, 9))
	r, err := from.Ping(c.t.Context(), b, lab.Ping{Timeout: 5 * time.Second}) // behind the marked ones
	if err != nil || r.Received != 1 {
		c.t.Errorf("last ping: %+v, %v", r, err)
	}
	w.stop()
	esp, udp, clear := w.count()
	c.t.Logf("%d ESP packets, %d ESP in UDP", esp, udp)
	if clear > 0 {
		c.t.Errorf("%d frames in clear text", clear)
	}
	if encap && (udp < 20 || esp > 0) || !encap && (esp < 20 || udp > 0) {
		c.t.Errorf("%d ESP packets and %d in UDP, UDPEncap %t", esp, udp, encap)
	}
	for _, d := range ds {
		if n := replayDrops(c.t, d.node); n > 0 {
			c.t.Errorf("%s dropped %d reordered packets as replayed", d.node.Name, n)
		}
	}
}

// replayDrops returns how many packets of a node the kernel took for replayed ones.
func replayDrops(t *testing.T, n *lab.Node) (drops int) {
	t.Helper()
	for line := range strings.Lines(inNode(t, n, "cat", "/proc/net/xfrm_stat")) {
		if _, err := fmt.Sscanf(line, "XfrmInStateSeqError %d", &drops); err == nil {
			return drops
		}
	}
	t.Fatal("the kernel counts no replayed packets")
	return 0
}

func sendMarked(t *testing.T, from *lab.Pod, to netip.AddrPort) {
	t.Helper()
	conn, err := from.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 5 {
		_, _ = conn.Write([]byte(marker)) // an ICMP error of an earlier one
	}
}

// TestNetnsIPsec checks the traffic, then disturbs it.
func TestNetnsIPsec(t *testing.T) {
	c := newIPsecCluster(t, lab.Options{}, ipsecConfig("k", ""))
	ds := c.upIPsec(c.Nodes)
	a, b := c.Nodes[0], c.Nodes[1]
	from, to := a.Pods[0], b.Pods[0]
	c.checkESPTraffic(ds, from.Addr, to.Addr, false)
	net0, net1 := ds[0].env().Subnet.Masked(), ds[1].env().Subnet.Masked()
	tunnel := func(from, to *lab.Node) string { return fmt.Sprintf(" %v %v reqid 11", from.Addr, to.Addr) }
	want := []string{
		fmt.Sprintf("dir fwd %v %v", net1, net0) + tunnel(b, a), fmt.Sprintf("dir in %v %v", net1, net0) + tunnel(b, a),
		fmt.Sprintf("dir out %v %v", net0, net1) + tunnel(a, b),
	}
	if got := policies(t, a); !slices.Equal(got, want) {
		t.Errorf("policies %q, want %q", got, want)
	}
	for _, d := range ds {
		s := d.status()
		if s.IPsec == nil || s.IPsec.Established != 1 || s.MTU != 1500-77 || s.Nodes[0].IPsec == nil ||
			s.Nodes[0].IPsec.Established.IsZero() || s.Nodes[0].Unreachable != "" {
			t.Errorf("%s: status %+v %+v", d.node.Name, s.IPsec, s.Nodes)
		}
		if log := d.Log(); strings.Contains(log, "kkkk") {
			t.Errorf("%s: the log holds the PSK:\n%s", d.node.Name, log)
		}
	}
	t.Run("rekey", func(t *testing.T) { c.in(t).checkRekey(ds) })
	t.Run("charon killed", func(t *testing.T) { c.in(t).checkCharonKilled(ds) })
	t.Run("policy deleted", func(t *testing.T) { c.in(t).checkPolicyDeleted(a, want) })
	t.Run("restart", func(t *testing.T) { ds[0] = c.in(t).checkIPsecRestart(ds, want) })
	t.Run("cleanup", func(t *testing.T) { c.in(t).checkIPsecCleanup(ds) })
}

// adopt makes the daemons those of the cluster's test.
func (c *cluster) adopt(ds []*member) {
	for _, d := range ds {
		d.t = c.t
	}
}

// checkRekey replaces the keys while pods ping.
func (c *cluster) checkRekey(ds []*member) {
	c.t.Helper()
	c.adopt(ds)
	before := spis(c.t, c.Nodes[0])
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	session, err := vici.NewSession(vici.WithAddr("unix", c.Nodes[0].Path("charon.vici")))
	if err != nil {
		c.t.Fatal(err)
	}
	defer session.Close()
	m := vici.NewMessage()
	if err := m.Set("child", fmt.Sprintf("%v-%v", ds[0].env().Subnet.Masked(), ds[1].env().Subnet.Masked())); err != nil {
		c.t.Fatal(err)
	}
	if _, err := session.Call(c.t.Context(), "rekey", m); err != nil {
		c.t.Fatal(err)
	}
	for _, d := range ds {
		await(c.t, vmPatience, d.node.Name+" counts the rekeying", func() error {
			if n := d.status().Nodes[0].IPsec; n.Rekeys == 0 || n.Rekeyed.IsZero() {
				return fmt.Errorf("%+v", n)
			}
			return nil
		})
	}
	check(emulatedLoss)
	if after := spis(c.t, c.Nodes[0]); slices.Contains(before, after[0]) && len(after) == len(before) {
		c.t.Errorf("SPIs %x, before %x", after, before)
	}
}

// checkCharonKilled kills charon and, so that its keys are of no use, deletes them.
func (c *cluster) checkCharonKilled(ds []*member) {
	c.t.Helper()
	c.adopt(ds)
	pid := ds[0].status().IPsec.PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	if err := c.Nodes[0].Do(func() error { return netlink.XfrmStateFlush(netlink.XFRM_PROTO_ESP) }); err != nil {
		c.t.Fatal(err)
	}
	await(c.t, vmPatience, "charon is back", func() error {
		if s := ds[0].status().IPsec; s.Restarts != 1 || s.PID == pid || s.Established != 1 || s.Error != "" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	c.awaitAnswer(vmPatience, c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	c.checkESPTraffic(ds, c.Nodes[0].Pods[0].Addr, c.Nodes[1].Pods[0].Addr, false)
}

// checkPolicyDeleted deletes a policy, as another program may.
func (c *cluster) checkPolicyDeleted(n *lab.Node, want []string) {
	c.t.Helper()
	err := n.Do(func() error {
		all, err := netlink.XfrmPolicyList(netlink.FAMILY_V4)
		for _, p := range all {
			if p.Dir == netlink.XFRM_DIR_OUT {
				return netlink.XfrmPolicyDel(&p)
			}
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	await(c.t, vmPatience, "the policy is back", func() error {
		if got := policies(c.t, n); !slices.Equal(got, want) {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// awaitHealth waits until the daemon answers.
func (d *member) awaitHealth() {
	d.t.Helper()
	d.awaitPage(vmPatience, "/healthz", func(_ []byte, err error) error { return err })
}

// end stops the daemon without a limit that an emulated machine may not meet.
func (d *member) end() {
	d.t.Helper()
	if code, err := d.Stop(d.t.Context()); code != 0 || err != nil {
		d.t.Errorf("%s: exit %d, %v", d.node.Name, code, err)
	}
}

// checkIPsecRestart stops a daemon and starts it again while pods ping.
func (c *cluster) checkIPsecRestart(ds []*member, want []string) *member {
	c.t.Helper()
	c.adopt(ds)
	p, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	ds[0].end()
	c.awaitAnswers(vmPatience, p, 100)
	if got := policies(c.t, c.Nodes[0]); !slices.Equal(got, want) {
		c.t.Errorf("policies without a daemon %q, want %q", got, want)
	}
	d := c.start(c.Nodes[0], withoutRules, "-v=1")
	d.awaitHealth()
	await(c.t, vmPatience, "a new association", func() error {
		if s := d.status().IPsec; s == nil || s.Established != 1 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	c.awaitAnswers(vmPatience, p, 100)
	check(emulatedLoss)
	if got := policies(c.t, c.Nodes[0]); !slices.Equal(got, want) {
		c.t.Errorf("policies after a restart %q, want %q", got, want)
	}
	return d
}

// checkIPsecCleanup adds policies of another program, one of them with the same reqid, and removes
// those of the daemon.
func (c *cluster) checkIPsecCleanup(ds []*member) {
	c.t.Helper()
	c.adopt(ds)
	n := c.Nodes[0]
	foreign := netlink.XfrmPolicy{Src: cidr("10.5.200.0/24"), Dst: cidr("10.5.201.0/24"), Dir: netlink.XFRM_DIR_OUT, Priority: 300000,
		Tmpls: []netlink.XfrmPolicyTmpl{{Src: n.Addr.AsSlice(), Dst: net.IPv4(192, 0, 2, 9), Proto: netlink.XFRM_PROTO_ESP,
			Mode: netlink.XFRM_MODE_TUNNEL, Reqid: 11}}}
	other := foreign
	other.Dst, other.Priority, other.Tmpls = cidr("10.5.202.0/24"), 0, slices.Clone(foreign.Tmpls)
	other.Tmpls[0].Reqid = 12
	if err := n.Do(func() error {
		if err := netlink.XfrmPolicyAdd(&foreign); err != nil {
			return err
		}
		return netlink.XfrmPolicyAdd(&other)
	}); err != nil {
		c.t.Fatal(err)
	}
	for _, d := range ds {
		d.end()
	}
	if len(spis(c.t, n)) == 0 {
		c.t.Error("no security association is left to clean up")
	}
	code, output := cleanUp(c.t, n)
	if code != 0 || strings.Count(output, "removed policy") != 3 || !strings.Contains(output, "removed security associations of") {
		c.t.Errorf("cleanup: exit %d: %s", code, output)
	}
	if got := policies(c.t, n); len(got) != 2 || !strings.Contains(strings.Join(got, "\n"), "10.5.201.0/24") {
		c.t.Errorf("policies %q, want the two of another program", got)
	}
	if left := spis(c.t, n); len(left) > 0 {
		c.t.Errorf("security associations left: %x", left)
	}
}

func cidr(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

// TestNetnsIPsecDualStack has both families, with and without ESP in UDP.
func TestNetnsIPsecDualStack(t *testing.T) {
	for _, tt := range []struct {
		keys string
		udp  bool
		mtu  int
	}{{"", false, 1500 - 97}, {`"UDPEncap":true,`, true, 1500 - 105}} {
		t.Run(fmt.Sprintf("UDPEncap %t", tt.udp), func(t *testing.T) {
			network := ipsecConfig("k", `"EnableIPv6":true,"IPv6Network":"fd10:5::/48",`)
			network = strings.Replace(network, `"Type"`, tt.keys+`"Type"`, 1)
			c := newIPsecCluster(t, lab.Options{Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}, network)
			ds := c.upIPsec(c.Nodes)
			if mtu := ds[0].env().MTU; mtu != tt.mtu {
				t.Errorf("MTU %d, want %d", mtu, tt.mtu)
			}
			from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
			c.checkESPTraffic(ds, from.Addr, to.Addr, tt.udp)
			await(t, vmPatience, "IPv6", func() error {
				r, err := from.Ping(t.Context(), to.Addr6, lab.Ping{})
				if err == nil && r.Received == 0 {
					err = fmt.Errorf("%+v", r)
				}
				return err
			})
			c.checkESPTraffic(ds, from.Addr6, to.Addr6, tt.udp)
			if s := ds[0].status(); s.IPsec.Established != 2 || s.Nodes[0].IPsec6.UDP != tt.udp {
				t.Errorf("status %+v %+v", s.IPsec, s.Nodes[0].IPsec6)
			}
			if t.Failed() {
				t.Log(inNode(t, c.Nodes[0], "cat", "/proc/net/xfrm_stat", "/proc/net/snmp6"))
				t.Log(inNode(t, c.Nodes[1], "cat", "/proc/net/xfrm_stat", "/proc/net/snmp6"))
			}
		})
	}
}

// TestNetnsIPsecWrongPSK gives the nodes different keys. It needs no ESP.
func TestNetnsIPsecWrongPSK(t *testing.T) {
	needCharon(t)
	c := newCluster(t, lab.Options{PodsPerNode: -1}, clusterNetwork)
	var ds []*member
	for i, n := range c.Nodes {
		leases := fmt.Sprintf(`{"network": %s, "nodes": [`, ipsecConfig(string(rune('k'+i)), ""))
		for j, m := range c.Nodes {
			leases += fmt.Sprintf(`{"name": "%s", "subnet": "10.5.%d.0/24", "publicIP": "%s", "backendType": "ipsec"},`, m.Name, j+1, m.Addr)
		}
		c.writeFile(n.Path("weft.yml"), strings.TrimSuffix(leases, ",")+"]}")
		ds = append(ds, c.startWith(n, "--lease-file=/run/weft.yml", "--node-name="+n.Name, withoutRules, "-v=1"))
	}
	for _, d := range ds {
		d.awaitHealth()
		await(t, vmPatience, d.node.Name+" reports the PSK", func() error {
			s := d.status()
			for _, condition := range s.Conditions {
				if condition.Name == "ipsec" && !condition.OK && strings.Contains(condition.Reason, "the PSK differs") &&
					strings.Contains(s.Nodes[0].Unreachable, "AUTHENTICATION_FAILED: the PSK differs") {
					return nil
				}
			}
			return fmt.Errorf("%+v %+v", s.Conditions, s.Nodes)
		})
		if log := d.Log(); strings.Contains(log, "kkkk") || strings.Contains(log, "llll") {
			t.Errorf("%s: the log holds a PSK:\n%s", d.node.Name, log)
		}
	}
}

// TestNetnsIPsecMixedWithFlannel runs flannel on one node and weftd on the other.
func TestNetnsIPsecMixedWithFlannel(t *testing.T) {
	flanneld := otherProgram(t, flanneldVariable, "a real flannel daemon on the other node")
	for _, udp := range []bool{false, true} {
		t.Run(fmt.Sprintf("UDPEncap %t", udp), func(t *testing.T) {
			config := strings.Replace(ipsecConfig("k", ""), `"Type"`, fmt.Sprintf(`"UDPEncap":%t,"Type"`, udp), 1)
			c := newIPsecCluster(t, lab.Options{}, config)
			theirs, ours := c.Nodes[0], c.Nodes[1]
			_, err := theirs.Start([]string{flanneld, "--etcd-endpoints=" + c.endpoint(), withoutRules})
			if err != nil {
				t.Fatal(err)
			}
			await(t, vmPatience, "flannel's subnet.env", func() error {
				env, err := subnetenv.Read(theirs.Path("flannel/subnet.env"))
				if err != nil {
					return err
				}
				return theirs.Attach(env)
			})
			ds := c.upIPsec([]*lab.Node{ours})
			c.awaitAnswer(vmPatience, theirs.Pods[0], ours.Pods[0])
			c.checkESPTraffic(ds, theirs.Pods[0].Addr, ours.Pods[0].Addr, udp)
			env, err := subnetenv.Read(theirs.Path("flannel/subnet.env"))
			if err != nil || env.MTU != ds[0].env().MTU {
				t.Errorf("flannel's MTU is %d, %v; ours %d", env.MTU, err, ds[0].env().MTU)
			}
			if status := ds[0].status(); status.IPsec.Established != 1 || status.Nodes[0].IPsec.UDP != udp {
				t.Errorf("status %+v %+v", status.IPsec, status.Nodes[0].IPsec)
			}
		})
	}
}
