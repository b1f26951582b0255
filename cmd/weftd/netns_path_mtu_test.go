package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

// TestNetnsPathMTUWithDropInvalid checks that TCP continues at a smaller size across a router with
// a smaller MTU, although the node drops packets in state INVALID as ufw does.
func TestNetnsPathMTUWithDropInvalid(t *testing.T) {
	for _, variant := range []string{"iptables-nft", "iptables-legacy"} {
		for _, backend := range []string{"udp", "vxlan"} {
			t.Run(backend+" with "+variant, func(t *testing.T) {
				if _, err := exec.LookPath(variant); err != nil {
					t.Skipf("NOT TESTED: %v", err)
				}
				c := newCluster(t, lab.Options{Underlay: []netip.Prefix{
					netip.MustParsePrefix("172.31.0.0/24"), netip.MustParsePrefix("172.31.1.0/24")}},
					`{"Network":"10.5.0.0/16","Backend":{"Type":"`+backend+`"}}`)
				if err := c.Root.SetMTU("under1", 1400); err != nil {
					t.Fatal(err)
				}
				for _, rule := range []string{
					"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
					"-m conntrack --ctstate INVALID -j DROP",
				} {
					inNode(t, c.Nodes[0], append([]string{variant, "-A", "INPUT"}, strings.Fields(rule)...)...)
				}
				ds := c.restart()
				from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
				notes := strings.Join(ds[0].status().Rules.Notes, "\n")
				if !strings.Contains(notes, "tunnel packets stay in connection tracking: ") {
					t.Errorf("notes %q", notes)
				}
				err := lab.Await(t.Context(), 10*time.Second, "stream across the router", func() error {
					return lab.CheckTCP(t.Context(), from.NS, to.NS, to.Addr, 1<<20)
				})
				if err != nil {
					t.Error(err)
				}
				r, err := from.Ping(t.Context(), to.Addr, lab.Ping{Count: 4, Size: 1400, Interval: 200 * time.Millisecond})
				if err = errors.Join(err, lossError(r)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// lossError returns an error if all packets were lost.
func lossError(r lab.PingResult) error {
	if r.Received == 0 {
		return fmt.Errorf("no answer: %+v", r)
	}
	return nil
}
