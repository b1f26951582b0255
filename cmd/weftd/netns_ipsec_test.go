package main

import (
	"bytes"
	"context"
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
)

// ipsecConfig returns a network config with a PSK of the character.
func ipsecConfig(psk, more string) string {
	return fmt.Sprintf(`{"Network":"10.5.0.0/16",%s"Backend":{"Type":"ipsec","PSK":"%s"}}`, more,
		strings.Repeat(psk, 96))
}

// newIPsecCluster is newCluster on a host with charon and a kernel with ESP.
func newIPsecCluster(t *testing.T, o lab.Options, network string) *cluster {
	t.Helper()
	if _, err := os.Stat("/usr/lib/ipsec/charon"); err != nil {
		if _, err := exec.LookPath("charon"); err != nil {
			t.Skip("NOT TESTED: IPsec: no charon (strongswan)")
		}
	}
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

// upIPsec starts the daemons and waits until all pods reach each other.
func (c *cluster) upIPsec() []*member {
	c.t.Helper()
	ds := c.up()
	for _, d := range ds {
		d.awaitReady()
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
		case ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_UDP && ip[22] == 4500>>8 && ip[23] == 4500&0xff:
			udp++
		}
	}
	return esp, udp, clear
}

// checkESPTraffic sends marked packets both ways and checks that the wire has only ESP.
func (c *cluster) checkESPTraffic(ds []*member, a, b netip.Addr, encap bool) {
	c.t.Helper()
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	w := c.record()
	size := ds[0].env().MTU
	for _, way := range []struct {
		from, to *lab.Pod
		addr     netip.Addr
	}{{from, to, b}, {to, from, a}} {
		r, err := way.from.Ping(c.t.Context(), way.addr, lab.Ping{Count: 5, Size: size, DontFragment: true, Timeout: 5 * time.Second})
		if err != nil || r.Received != 5 {
			c.t.Errorf("pings of %d bytes from %s to %v: %+v, %v", size, way.from.Name, way.addr, r, err)
		}
		if err := lab.CheckTCP(c.t.Context(), way.from.NS, way.to.NS, way.addr, 1<<20); err != nil {
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
	ds := c.upIPsec()
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	t.Run("traffic", func(t *testing.T) {
		c := c.in(t)
		c.checkESPTraffic(ds, from.Addr, to.Addr, false)
	})
	for _, d := range ds {
		d.t = t
		if s := d.status(); s.IPsec == nil || s.IPsec.Established != 1 || s.MTU != 1500-77 ||
			s.Nodes[0].IPsec == nil || s.Nodes[0].IPsec.Established.IsZero() {
			t.Errorf("%s: status %+v %+v", d.node.Name, s.IPsec, s.Nodes)
		}
	}
	t.Log(policies(t, c.Nodes[0]), spis(t, c.Nodes[0]))
}

var _ = syscall.SIGKILL
var _ = vici.NewMessage
