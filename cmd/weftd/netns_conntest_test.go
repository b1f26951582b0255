package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/ctrl/conntest"
	"weft/deploy/lab"
)

// conntestLab is a cluster with weft test serve on all nodes but the first.
type conntestLab struct {
	*cluster
	tool    string // weft
	daemons []*member
}

func newConntestLab(t *testing.T, o lab.Options, network string, flags ...string) *conntestLab {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &conntestLab{cluster: newCluster(t, o, network), tool: filepath.Join(t.TempDir(), toolName)}
	if err := os.Symlink(self, c.tool); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		c.daemons = append(c.daemons, c.start(n, flags...))
	}
	for _, d := range c.daemons {
		d.awaitReady()
	}
	for i, d := range c.daemons {
		await(t, patience, "nodes known to "+d.node.Name, func() error {
			if n := len(d.status().Nodes); n != len(c.Nodes)-1 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		if i > 0 {
			c.serve(d.node)
			c.awaitTunnel(c.daemons[0], d)
		}
	}
	return c
}

// awaitTunnel waits until a node answers another one through the overlay.
func (c *conntestLab) awaitTunnel(from, to *member) {
	c.t.Helper()
	subnet := to.env().Subnet
	if from.status().Device == "" || !subnet.IsValid() {
		return // no device: the bridges come later
	}
	await(c.t, patience, "an answer of "+to.node.Name, func() error {
		r, err := from.node.Ping(c.t.Context(), subnet.Masked().Addr(), lab.Ping{Timeout: 100 * time.Millisecond})
		if err == nil && r.Received == 0 {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
}

// weft starts the tool in a node.
func (c *conntestLab) weft(n *lab.Node, args ...string) *lab.Process {
	c.t.Helper()
	p, err := n.Start(append([]string{c.tool}, args...), asDaemon+"=1")
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// serve runs weft test serve in a node.
func (c *conntestLab) serve(n *lab.Node) *lab.Process {
	c.t.Helper()
	p := c.weft(n, "test", "serve")
	await(c.t, patience, "weft test serve on "+n.Name, func() error {
		if !strings.Contains(p.Log(), "answer on port") {
			return fmt.Errorf("running: %t: %s", p.Running(), p.Log())
		}
		return nil
	})
	return p
}

// servedPod returns the IPv4 address of the pod of weft test serve on a node.
func (c *conntestLab) servedPod(node int) string {
	c.t.Helper()
	info, err := conntest.Discover(c.t.Context(), conntest.Here{},
		netip.AddrPortFrom(c.Nodes[node].Addr, conntest.DefaultPort))
	if err != nil {
		c.t.Fatal(err)
	}
	return info.Pod[0].String()
}

// run runs weft test in a node and returns its results and its exit status.
func (c *conntestLab) run(n *lab.Node, args ...string) (results []conntest.Result, code int) {
	c.t.Helper()
	begin := time.Now()
	p := c.weft(n, append([]string{"test", "--json"}, args...)...)
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	code, err := p.Wait(ctx)
	if err != nil {
		c.t.Fatalf("%v: %s", err, p.Log())
	}
	var report struct {
		OK      bool
		Results []conntest.Result
	}
	if err := json.Unmarshal([]byte(p.Log()), &report); err != nil {
		c.t.Fatalf("exit status %d, %v: %s", code, err, p.Log())
	}
	if report.OK != (code == 0) {
		c.t.Errorf("exit status %d, ok %t", code, report.OK)
	}
	var text strings.Builder
	if err := conntest.Text(&text, report.Results); err != nil {
		c.t.Error(err)
	}
	c.t.Logf("%v\n%s", time.Since(begin), &text)
	return report.Results, code
}

// healthy tests from the first node and expects that every check passes.
func (c *conntestLab) healthy(checks int, args ...string) {
	c.t.Helper()
	results, code := c.run(c.Nodes[0], args...)
	if code != 0 || len(results) != checks {
		c.t.Errorf("exit status %d, %d checks, want %d", code, len(results), checks)
	}
}

// expect tests from the first node and expects these failures, and no others: a text of the reason
// by node and check.
func (c *conntestLab) expect(want map[string]string, args ...string) {
	c.t.Helper()
	results, code := c.run(c.Nodes[0], args...)
	if code != 1 {
		c.t.Errorf("exit status %d, want 1", code)
	}
	found := map[string]bool{}
	for _, r := range results {
		key := r.To + " " + string(r.Check)
		text, expected := want[key]
		if r.Outcome == conntest.Passed {
			continue
		}
		if !expected || !strings.Contains(r.Reason, text) {
			c.t.Errorf("%s: %q, want %q", key, r.Reason, text)
		}
		found[key] = true
	}
	for key := range want {
		if !found[key] {
			c.t.Errorf("%s passed", key)
		}
	}
}

// every returns a reason for all checks of a node.
func every(node, reason string) map[string]string {
	all := map[string]string{}
	for _, c := range []conntest.Check{conntest.PodToPod, conntest.Large, conntest.TCP, conntest.Fragments,
		conntest.PodToHost, conntest.HostToPod} {
		all[node+" "+string(c)] = reason
	}
	return all
}

// conntestNetwork returns a network config with both families.
func conntestNetwork(backend string) string {
	return `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/56","Backend":{"Type":"` + backend + `"}}`
}

// conntestPassed is the number of checks of another node that has both families.
const conntestPassed = 2 * 6

// conntestTwoSubnets are nodes of both families in two underlay subnets.
var conntestTwoSubnets = lab.Options{
	Nodes:     3,
	Underlay:  []netip.Prefix{netip.MustParsePrefix("172.31.0.0/24"), netip.MustParsePrefix("172.31.1.0/24")},
	Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64"), netip.MustParsePrefix("fd31:1::/64")},
}

// TestNetnsConntestFastPath tests a healthy cluster with a fast path.
func TestNetnsConntestFastPath(t *testing.T) {
	newConntestLab(t, conntestTwoSubnets, conntestNetwork("udp")).healthy(2 * conntestPassed)
}

// TestNetnsConntestUDP tests a healthy cluster, and one fault after the other. They are faults of
// the tunnel's port, whose filters do not see a fast path.
func TestNetnsConntestUDP(t *testing.T) {
	c := newConntestLab(t, conntestTwoSubnets, conntestNetwork("udp"), "--fast-path=off")
	c.healthy(2 * conntestPassed)
	second := c.Nodes[1]
	rule := func(n *lab.Node, rule string, want map[string]string) {
		inNode(t, n, strings.Fields("iptables -I "+rule)...)
		c.expect(want)
		inNode(t, n, strings.Fields("iptables -D "+rule)...)
	}
	rule(second, "FORWARD -p tcp -j DROP",
		map[string]string{"node2 tcp": "ping passes, no answer to TCP", "node2 host-pod": "ping passes, no answer to TCP"})
	rule(second, "INPUT -p udp --dport 8285 -j DROP", every("node2", "answers on the underlay"))
	rule(second, "INPUT -p udp --dport 8285 -m length --length 1400: -j DROP", map[string]string{
		"node2 large": "black hole: packets of up to 1371 bytes pass", "node2 tcp": "large packets are lost",
		"node2 fragments": "large packets, are lost"})
	if err := c.Root.SetMTU("under1", 1400); err != nil {
		t.Fatal(err)
	}
	c.expect(map[string]string{"node2 large": "reports a path MTU of 1372"})
}

// TestNetnsConntestBothWays drops the tunnel's port, whose rules do not see the fast path: the
// packets that the workers carry are lost, and the node with the rule is named from both ends.
func TestNetnsConntestBothWays(t *testing.T) {
	c := newConntestLab(t, lab.Options{}, clusterNetwork, "--fast-path=auto")
	c.daemons[0].awaitFastPath()
	c.healthy(conntestPassed / 2)
	rule := strings.Fields("-p udp --dport 8285 -j DROP")
	for i, where := range []string{"node1 (INPUT), or of node2 (OUTPUT)", "node2 (INPUT), or of node1 (OUTPUT)"} {
		inNode(t, c.Nodes[i], append([]string{"iptables", "-I", "INPUT"}, rule...)...)
		c.expect(every("node2", "a packet filter of "+where))
		inNode(t, c.Nodes[i], append([]string{"iptables", "-D", "INPUT"}, rule...)...)
	}
	c.healthy(conntestPassed / 2)
	// The fast path alone is lost: its datagrams have no checksum.
	defer dropUDPWithoutChecksum(t, c.Root)()
	results, _ := c.run(c.Nodes[0])
	for _, r := range results {
		// The nodes may have noticed meanwhile.
		if r.Outcome == conntest.Failed && !strings.Contains(r.Reason, "drops UDP without a checksum") {
			t.Errorf("%s: %s", r.Check, r.Reason)
		}
	}
}

// TestNetnsConntestVXLAN tests a Service, with a rule like that of kube-proxy, and a dead node.
func TestNetnsConntestVXLAN(t *testing.T) {
	c := newConntestLab(t, lab.Options{Nodes: 3, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}},
		conntestNetwork("vxlan"))
	const service = "10.96.0.10:80"
	inNode(t, c.Nodes[0], strings.Fields("iptables -t nat -A PREROUTING -d 10.96.0.10 -p tcp --dport 80 "+
		"-j DNAT --to-destination "+c.servedPod(1)+":8287")...)
	c.healthy(2*conntestPassed+1, "--service="+service)
	inNode(t, c.Nodes[0], "iptables", "-t", "nat", "-F", "PREROUTING")
	if err := c.KillNode(c.Nodes[2]); err != nil {
		t.Fatal(err)
	}
	want := every(c.Nodes[2].Addr.String(), "down or cut off") // its name is not in the store
	want[service+" service"] = "no answer"
	c.expect(want, "--service="+service)
}

// TestNetnsConntestHostGW tests with bridges, to which pods are connected.
func TestNetnsConntestHostGW(t *testing.T) {
	c := newConntestLab(t, lab.Options{Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}},
		conntestNetwork("host-gw"))
	c.healthy(conntestPassed)
	c.daemons[0].attach()
	c.healthy(conntestPassed)
}

// TestNetnsConntestAll tests from every node that has a server.
func TestNetnsConntestAll(t *testing.T) {
	c := newConntestLab(t, lab.Options{Nodes: 3}, clusterNetwork)
	c.serve(c.Nodes[0])
	c.healthy(3*2*conntestPassed/2, "--all")
}

// TestNetnsConntestKubernetes has a kubectl that executes in the namespaces of a lab.
func TestNetnsConntestKubernetes(t *testing.T) {
	c := newConntestLab(t, lab.Options{}, clusterNetwork)
	type ip = map[string]any
	items := []any{map[string]any{"kind": "Service", "spec": ip{"clusterIPs": []string{"10.96.0.10"}}}}
	for i, d := range c.daemons {
		d.attach()
		node, pod := c.Nodes[i], c.Nodes[i].Pods[0]
		for _, p := range []struct {
			ns     *lab.NS
			addr   netip.Addr
			onHost bool
		}{{node.NS, node.Addr, true}, {pod.NS, pod.Addr, false}} {
			items = append(items, map[string]any{"kind": "Pod", "metadata": ip{"name": p.ns.Name},
				"spec": ip{"nodeName": node.Name, "hostNetwork": p.onHost},
				"status": ip{"podIPs": []ip{{"ip": p.addr}}, "hostIPs": []ip{{"ip": node.Addr}},
					"conditions": []ip{{"type": "Ready", "status": "True"}}}})
			if i == 0 || !p.onHost { // the others run weft test serve
				answer := exec.Command(c.tool, "test", "answer")
				answer.Env = append(os.Environ(), asDaemon+"=1")
				if err := p.ns.Do(answer.Start); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_ = answer.Process.Kill() // it has ended at worst
					_ = answer.Wait()
				})
			}
		}
		inNode(t, node, strings.Fields("iptables -t nat -A PREROUTING -d 10.96.0.10 -p tcp --dport 8287 "+
			"-j DNAT --to-destination "+c.servedPod(1)+":8287")...)
	}
	list, err := json.Marshal(map[string]any{"items": items})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c.writeFile(filepath.Join(dir, "list"), string(list))
	kubectl := filepath.Join(dir, "kubectl")
	script := `#!/bin/sh
echo "$1" >>` + dir + `/calls
case $1 in
apply) cat >/dev/null ;;
get) cat ` + dir + `/list ;;
exec) exec ip netns exec "$5" ` + c.tool + ` test run ;;
esac
`
	if err := os.WriteFile(kubectl, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(t.Context(), c.tool, "test", "--kubernetes", "--image=weft:dev", "--kubectl="+kubectl)
	run.Env = append(os.Environ(), asDaemon+"=1")
	out, err := run.CombinedOutput()
	// Per node: five checks and the Service from the pod, and one check from the host.
	if err != nil || !strings.Contains(string(out), "all 14 checks passed") {
		t.Errorf("%v\n%s", err, out)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil || !strings.HasSuffix(string(calls), "delete\n") {
		t.Errorf("kubectl was not asked to remove the namespace: %v, %q", err, calls)
	}
}
