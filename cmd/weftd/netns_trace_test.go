package main

import (
	"fmt"
	"strings"
	"testing"

	"weft/ctrl/doctor"
)

// traceCase is a trace and the step that must fail; an empty one means that the packet arrives.
type traceCase struct {
	name       string
	make, undo string // in the first node, or in the second one if far is set
	far        bool
	args       []string
	fails      string // name of the step
	evidence   string // part of that step's, or of the last one's
}

// place returns the index of the node with the fault.
func (c traceCase) place() int {
	if c.far {
		return 1
	}
	return 0
}

// trace runs weft trace in the first node and compares the result.
func (d *doctorLab) trace(c traceCase) {
	d.t.Helper()
	await(d.t, doctorPatience, "trace "+strings.Join(c.args, " "), func() error {
		var got doctor.Trace
		if err := d.weft(d.Nodes[0], &got, append([]string{"trace", "--json"}, c.args...)...); err != nil {
			return err
		}
		var failed []string
		all := ""
		for _, s := range got.Steps {
			if s.Outcome == doctor.Fails {
				failed = append(failed, s.Name)
			}
			all += s.Evidence + "\n"
		}
		if c.fails == "" && len(failed) > 0 || c.fails != "" && (len(failed) == 0 || failed[0] != c.fails) ||
			!strings.Contains(all, c.evidence) {
			return fmt.Errorf("failed steps %q, want %q and %q: %+v", failed, c.fails, c.evidence, got.Steps)
		}
		return nil
	})
}

// TestNetnsTrace traces packets between two nodes with the udp backend.
func TestNetnsTrace(t *testing.T) {
	// The fast path would carry small packets past the filters of the tunnel port.
	d := newDoctorLab(t, clusterNetwork, "--fast-path=off")
	own, peer := d.Nodes[0].Pods[0].Addr.String(), d.Nodes[1].Pods[0].Addr.String()
	host, absent := d.Nodes[0].Addr.String(), d.daemons[0].env().Subnet.Masked().Addr().Prev().Prev().String()
	nobody := d.Nodes[1].Pods[0].Addr.Next().Next().Next().String()
	const link = "ip link add d0 type veth peer name d1; ip link set d1 up; ip link set d0 up; "
	const table = traceTable
	d.traceAll(t, []traceCase{
		{name: "from pod to pod", args: []string{own, peer, "tcp/80"}, evidence: "dev flannel0"},
		{name: "from a pod of another node", args: []string{peer, own, "icmp"}, evidence: "second half of the way"},
		{name: "from the host", args: []string{host, peer, "--send"}, evidence: "answers echoes to 10.5."},
		{name: "sent to a closed port", args: []string{host, peer, "tcp", "--send"}, evidence: "so packets arrive"},
		{name: "dropped behind the overlay", args: []string{host, peer, "--send"}, far: true, fails: "probe",
			evidence: "flannel0 in ", undo: "nft delete table inet fw",
			make: table + "forward priority 0; }'; nft add rule inet fw f ip protocol icmp drop"},
		{name: "UDP dropped behind the overlay", args: []string{host, peer, "udp/53", "--send"}, far: true, fails: "probe",
			evidence: "flannel0 in ", undo: "nft delete table inet fw",
			make: table + "forward priority 0; }'; nft add rule inet fw f udp dport 53 drop"},
		{name: "TCP dropped behind the overlay", args: []string{host, peer, "tcp/80", "--send"}, far: true, fails: "probe",
			evidence: "flannel0 in ", undo: "nft delete table inet fw",
			make: table + "forward priority 0; }'; nft add rule inet fw f tcp dport 80 drop"},
		{name: "to an address without a pod", args: []string{host, nobody, "--send"}, fails: "probe",
			evidence: "flannel0 in "},
		{name: "a pod that does not answer", args: []string{host, peer, "udp/53", "--send"}, far: true,
			evidence: "cni0 out 1", undo: "nft delete table bridge fw",
			make: "nft add table bridge fw; nft 'add chain bridge fw f { type filter hook input priority 0; }'; " +
				"nft add rule bridge fw f icmp type destination-unreachable drop"},
		{name: "tunnel dropped where the fast path passes", args: []string{host, peer, "--send"}, far: true,
			fails: "other node", evidence: "does not answer echoes", undo: "nft delete table inet fw",
			make: table + "input priority 0; }'; nft add rule inet fw f udp dport 8285 drop"},
		{name: "to an address of no node", args: []string{own, absent}, fails: "lease", evidence: "no node has"},
		{name: "forwarding off", args: []string{own, peer}, fails: "forwarding", evidence: "ip_forward is 0",
			make: "echo 0 >/proc/sys/net/ipv4/ip_forward", undo: "echo 1 >/proc/sys/net/ipv4/ip_forward"},
		{name: "dropped port", args: []string{own, peer, "tcp/80"}, fails: "packet filter", evidence: "rule 1",
			make: table + "forward priority 0; }'; nft add rule inet fw f tcp dport 80 drop",
			undo: "nft delete table inet fw"},
		{name: "another port", args: []string{own, peer, "tcp/81"},
			make: table + "forward priority 0; }'; nft add rule inet fw f tcp dport 80 drop",
			undo: "nft delete table inet fw"},
		{name: "tunnel port dropped", args: []string{own, peer}, fails: "tunnel filter", evidence: "UDP port 8285",
			make: table + "output priority 0; }'; nft add rule inet fw f udp dport 8285 drop",
			undo: "nft delete table inet fw"},
		{name: "foreign route", args: []string{own, peer}, fails: "route", evidence: "dev d0",
			make: link + "ip route add " + peer + "/32 dev d0", undo: "ip link del d0"},
		{name: "policy rule", args: []string{own, peer}, fails: "route", evidence: "table 52",
			make: link + "ip route add 10.5.0.0/16 dev d0 table 52; ip rule add pref 5270 from " + own + " lookup 52",
			undo: "ip rule del pref 5270; ip link del d0"},
		{name: "forwarding of the bridge off", args: []string{own, peer}, fails: "forwarding",
			make: "echo 0 >/proc/sys/net/ipv4/conf/cni0/forwarding", undo: "echo 1 >/proc/sys/net/ipv4/conf/cni0/forwarding"},
	})
}

// TestNetnsTraceWorkers traces packets that the workers carry, and that packet filters for the
// tunnel's port see, unlike those of the fast path.
func TestNetnsTraceWorkers(t *testing.T) {
	d := newDoctorLab(t, clusterNetwork, "--fast-path=off")
	peer, host := d.Nodes[1].Pods[0].Addr.String(), d.Nodes[0].Addr.String()
	const table = traceTable
	d.traceAll(t, []traceCase{
		{name: "tunnel dropped at the other node", args: []string{host, peer, "--send"}, far: true, fails: "other node",
			evidence: "node2: eth0 in ", undo: "nft delete table inet fw",
			make: table + "input priority 0; }'; nft add rule inet fw f udp dport 8285 drop"},
		{name: "answers dropped at the other node", args: []string{host, peer, "--send"}, far: true, fails: "other node",
			evidence: "cni0 in ", undo: "nft delete table inet fw",
			make: table + "output priority 0; }'; nft add rule inet fw f udp dport 8285 drop"},
	})
}

// traceTable begins the command that adds a chain of a packet filter.
const traceTable = "nft add table inet fw; nft 'add chain inet fw f { type filter hook "

// traceAll traces each case in a subtest.
func (d *doctorLab) traceAll(t *testing.T, cases []traceCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			outer := d.t
			d.t = t
			defer func() {
				if c.undo != "" {
					d.shell(c.place(), c.undo)
				}
				d.t = outer
			}()
			if c.make != "" {
				d.shell(c.place(), c.make)
			}
			d.trace(c)
		})
	}
}
