package doctor

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/lease/subnetenv"
)

var (
	network  = netip.MustParsePrefix("10.5.0.0/16")
	own      = netip.MustParsePrefix("10.5.1.1/24")
	peerNet  = netip.MustParsePrefix("10.5.2.0/24")
	peerAddr = netip.MustParseAddr("192.0.2.2")
	peerMAC  = ctrl.MAC{2, 0, 0, 0, 0, 2}
)

// healthy returns the facts of a node with the vxlan backend, one other node and no fault.
func healthy(t *testing.T) *Facts {
	t.Helper()
	status, err := os.ReadFile("testdata/status.json")
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseStatus(status)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	via := Lookup{LookupResult: ctrl.LookupResult{Dev: "flannel.1", Via: peerNet.Addr(), Match: peerNet,
		Table: ctrl.TableMain, Protocol: ctrl.RouteProtocol}}
	under := Lookup{LookupResult: ctrl.LookupResult{Dev: "eth0", Table: ctrl.TableMain,
		Match: netip.MustParsePrefix("192.0.2.0/24")}}
	return &Facts{
		Now:     now,
		Missing: map[source]error{},
		Env:     subnetenv.File{Network: network, Subnet: own, MTU: 1450},
		Daemon:  d,
		Kernel: ctrl.State{
			Links: []ctrl.Link{
				{Name: "eth0", MTU: 1500, Up: true}, {Name: "cni0", MTU: 1450, Up: true},
				{Name: "flannel.1", Kind: ctrl.KindVXLAN, MTU: 1450, Up: true, VXLAN: ctrl.VXLAN{Port: 8472}},
			},
			Addrs: []ctrl.Addr{{Dev: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")},
				{Dev: "cni0", Prefix: own}, {Dev: "veth0", Prefix: netip.PrefixFrom(own.Addr(), 32)}, {Dev: "flannel.1", Prefix: netip.MustParsePrefix("10.5.1.0/32")}},
			Routes: []ctrl.Route{{Dst: peerNet, Via: peerNet.Addr(), Dev: "flannel.1",
				Protocol: ctrl.RouteProtocol}},
			Neighbours: []ctrl.Neighbour{{Dev: "flannel.1", IP: peerNet.Addr(), MAC: peerMAC}},
			FDB:        []ctrl.FDBEntry{{Dev: "flannel.1", MAC: peerMAC, Dst: peerAddr}},
		},
		Pods: []Pod{{Name: "pause, PID 7", Dev: "eth0", Addr: netip.MustParsePrefix("10.5.1.2/24"), MTU: 1450,
			Route: Lookup{LookupResult: ctrl.LookupResult{Dev: "eth0", Via: own.Addr()}}}},
		Ports:     map[string][]string{"cni0": nil},
		Sysctl:    map[string]string{"net/ipv4/ip_forward": "1"},
		Processes: []Process{{PID: 1, Program: "weftd", Same: true}},
		CNI:       []CNIConfig{{"10-flannel.conflist", []string{"flannel", "portmap"}}},
		Store:     []Endpoint{{URL: "http://etcd:2379", Dated: true}},
		Nodes: []Node{{Name: "n2", Subnet: peerNet, Public: peerAddr, Target: peerNet.Addr(), Route: via,
			Forward: via, Underlay: under, Probed: true, Probes: Probes{TCP: true, DirectTCP: true,
				Small: Echo{Sent: 1, Received: 1}, Large: Echo{Sent: 1, Received: 1},
				Direct: Echo{Sent: 1, Received: 1}}}},
	}
}

func TestOverflowFew(t *testing.T) {
	f := healthy(t)
	f.Daemon.Traffic = &Traffic{Overflows: []Overflow{{"tun", 1}}}
	if found := findOverflow(f); len(found) > 0 {
		t.Errorf("found %+v after one lost packet", found)
	}
}

// TestNoStrangers has filters and policies of other programs that are no faults.
func TestNoStrangers(t *testing.T) {
	f := healthy(t)
	f.Kernel.Links = append(f.Kernel.Links, ctrl.Link{Name: "bwp1", Kind: "ifb", Up: true})
	tracked := netfilter.Tracking{Untracked: true, Rule: "rule 1"}
	f.Nodes[0].Sent, f.Nodes[0].Returned = tracked, tracked // as of Cilium without kube-proxy
	filter := func(t ctrl.TrafficFilter) TCFilter { return TCFilter{TrafficFilter: t, Met: 9} }
	f.TC = []TCFilter{
		filter(ctrl.TrafficFilter{Dev: "cni0", Effect: ctrl.FilterRedirects, All: true, To: "bwp1"}), // a shaper
		filter(ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterMirrors, All: true, To: "tap7"}),
		filter(ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterProgram, Name: "cil_from_netdev"}),
		filter(ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterPolices, Dropped: 3}),
		{TrafficFilter: ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterDrops}}, // of other packets
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	f.IPsec = []ctrl.ForeignPolicy{
		{Dir: ctrl.Out, Src: all, Dst: all, Priority: 1}, // a bypass
		{Dir: ctrl.Out, Src: all, Dst: all, Priority: 2, Blocks: true},
		{Dir: ctrl.In, Src: all, Dst: all, Transforms: true, Associated: true},
	}
	if r := Examine(f); len(r.Findings) > 0 {
		t.Errorf("found %+v", r.Findings)
	}
}

// TestPermanentNeighbours fills the table with entries that the kernel does not count, as a VXLAN
// device in a large cluster does.
func TestPermanentNeighbours(t *testing.T) {
	f := healthy(t)
	f.Sysctl["net/ipv4/neigh/default/gc_thresh3"] = "1024"
	f.Neighbours = slices.Repeat([]ctrl.NeighbourState{{Dev: "flannel.1", IP: peerAddr, Permanent: true}}, 5000)
	if found := findNeighboursFull(f); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}

// silence makes the other node answer on the underlay only.
func silence(f *Facts) { f.Nodes[0].Probes.Small.Received, f.Nodes[0].Probes.TCP = 0, false }

// unmet returns a condition that is not met.
func unmet(name, reason string) []Condition { return []Condition{{Name: name, Reason: reason}} }

// faults change healthy facts so that exactly the check of that name finds something.
var faults = []struct {
	name string
	make func(*Facts)
}{
	{"daemon-not-running", func(f *Facts) {
		f.Processes, f.Daemon = nil, Daemon{}
		f.Missing[fromDaemon], f.Missing[fromTraffic] = errors.New("no daemon"), errors.New("no daemon")
	}},
	{"daemon-hung", func(f *Facts) {
		f.Missing[fromDaemon], f.Missing[fromTraffic] = os.ErrDeadlineExceeded, os.ErrDeadlineExceeded
	}},
	{"two-daemons", func(f *Facts) {
		f.Processes = append(f.Processes, Process{PID: 2, Program: "flanneld", Same: true})
	}},
	{"subnet-env-missing", func(f *Facts) { f.EnvErr = errors.New("no such file") }},
	{"cni-config-missing", func(f *Facts) { f.CNI, f.Daemon.Store.Kind = nil, "kubernetes" }},
	{"cni-config-foreign", func(f *Facts) {
		f.Daemon.Store.Kind = "kubernetes"
		f.CNI = slices.Insert(f.CNI, 0, CNIConfig{"05-cilium.conflist", []string{"cilium-cni"}})
	}},
	{"queue-overflow", func(f *Facts) {
		f.Daemon.Traffic.In.Packets = 1000
		f.Daemon.Traffic.Overflows = append(f.Daemon.Traffic.Overflows, Overflow{"socket", 50})
	}},
	{"pod-cidr", func(f *Facts) {
		f.Daemon.Conditions = unmet("lease", "node n1 has no podCIDR: see kube-controller-manager")
	}},
	{"store-denied", func(f *Facts) { f.Daemon.Store.Error = "etcdserver: permission denied" }},
	{"store-compacted", func(f *Facts) {
		f.Daemon.Store.Error = "etcdserver: mvcc: required revision has been compacted"
	}},
	{"store-proxied", func(f *Facts) {
		f.Daemon.Store.Connected, f.Store[0].Err = false, proxyError{"502 Bad Gateway"}
	}},
	{"store-down", func(f *Facts) { f.Store[0].Err = errors.New("connection refused") }},
	{"store-slow", func(f *Facts) { f.Store[0].Took = 2 * time.Second }},
	{"clock-skew", func(f *Facts) { f.Store[0].Skew = -5 * time.Minute }},
	{"lease-expiring", func(f *Facts) { f.Daemon.Lease.Expires = f.Now.Add(10 * time.Minute) }},
	{"ip-forward-off", func(f *Facts) { f.Sysctl["net/ipv4/ip_forward"] = "0" }},
	{"device-forwarding-off", func(f *Facts) { f.Sysctl["net/ipv4/conf/flannel.1/forwarding"] = "0" }},
	{"ipv6-disabled", func(f *Facts) {
		sixth := *f
		sixth.V6, sixth.Nodes, sixth.Kernel.FDB, sixth.Kernel.Neighbours = true, nil, nil, nil
		sixth.Env.Network6, sixth.Env.Subnet6 = netip.MustParsePrefix("fd00:5::/56"), netip.MustParsePrefix("fd00:5::1/64")
		sixth.Sysctl = maps.Clone(f.Sysctl)
		sixth.Sysctl["net/ipv6/conf/cni0/disable_ipv6"] = "1"
		f.Second = &sixth
	}},
	{"rp-filter-strict", func(f *Facts) {
		// Most nodes are on eth0; one is reached by eth1.
		f.Sysctl["net/ipv4/conf/eth0/rp_filter"] = "1"
		other := f.Nodes[0]
		other.Name, other.Underlay.Dev = "n3", "eth1"
		f.Nodes = append(f.Nodes, other)
	}},
	{"br-netfilter-missing", func(f *Facts) { f.Filter.Chains = []string{"KUBE-SERVICES"} }},
	{"conntrack-full", func(f *Facts) {
		f.Sysctl["net/netfilter/nf_conntrack_count"], f.Sysctl["net/netfilter/nf_conntrack_max"] = "950", "1000"
	}},
	{"neighbour-table-full", func(f *Facts) {
		f.Sysctl["net/ipv4/neigh/default/gc_thresh3"] = "1024"
		f.Neighbours = slices.Repeat([]ctrl.NeighbourState{{Dev: "eth0", IP: peerAddr}}, 1000)
	}},
	{"device-missing", func(f *Facts) { f.Kernel.Links[2].Up = false }},
	{"state-contested", func(f *Facts) { f.Repairs, f.Took = 40, time.Second }},
	{"tunnel-mtu", func(f *Facts) { f.Kernel.Links[0].MTU = 1400 }},
	{"pod-mtu", func(f *Facts) { f.Kernel.Links[1].MTU = 1500 }},
	{"bridge-down", func(f *Facts) { f.Kernel.Links[1].Up, f.Ports["cni0"] = false, []string{"veth0"} }},
	{"bridge-subnet", func(f *Facts) { f.Kernel.Addrs[1].Prefix = netip.MustParsePrefix("10.5.9.1/24") }},
	{"bridge-subnet", func(f *Facts) { f.Kernel.Addrs[1].Prefix = netip.PrefixFrom(own.Addr(), 16) }},
	{"arp-off", func(f *Facts) { f.NoARP = []string{"cni0", "flannel.1"} }},
	{"netem", func(f *Facts) { f.Netem = []string{"eth0", "eth9"} }},
	{"pod-route", func(f *Facts) { f.Pods[0].Route.Via = netip.MustParseAddr("10.5.1.254") }},
	{"pod-route", func(f *Facts) {
		f.Pods[0].Addr, f.Pods[0].Route.Via = netip.MustParsePrefix("10.5.1.2/16"), netip.Addr{}
	}},
	{"pod-address", func(f *Facts) { f.Pods = append(f.Pods, f.Pods[0]) }},
	{"pod-cut-off", func(f *Facts) { f.Pods[0].Probed, f.BlockedPorts = true, []string{"veth0"} }},
	{"pod-cut-off", func(f *Facts) {
		f.Pods[0].Probed, f.Pods[0].Gateway = true, Echo{Sent: 1, Received: 1}
		f.PolicyRules = []string{"50: fwmark 0x77"}
	}},
	{"path-lossy", func(f *Facts) { f.Nodes[0].Probes.Loss = Echo{Sent: 20, Received: 15} }},
	{"tc-filter", func(f *Facts) {
		f.TC = []TCFilter{{TrafficFilter: ctrl.TrafficFilter{Dev: "cni0", Effect: ctrl.FilterDrops, All: true}}}
	}},
	{"tc-filter", func(f *Facts) {
		f.TC = []TCFilter{{TrafficFilter: ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterRedirects, To: "d0"}, Met: 3}}
	}},
	{"tc-filter", func(f *Facts) {
		silence(f)
		f.TC = []TCFilter{{TrafficFilter: ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterProgram, Name: "mine"}}}
	}},
	{"tc-police", func(f *Facts) {
		f.TC = []TCFilter{{TrafficFilter: ctrl.TrafficFilter{Dev: "eth0", Effect: ctrl.FilterPolices, Dropped: 9}, Lost: 9}}
	}},
	{"ipsec-foreign", func(f *Facts) {
		f.IPsec = []ctrl.ForeignPolicy{{Dir: ctrl.Out, Src: netip.MustParsePrefix("0.0.0.0/0"), Dst: peerNet, Blocks: true}}
	}},
	{"ipsec-foreign", func(f *Facts) {
		f.Nodes[0].Underlay.Src = netip.MustParseAddr("192.0.2.1")
		f.IPsec = []ctrl.ForeignPolicy{{Dir: ctrl.In, Src: netip.PrefixFrom(peerAddr, 32),
			Dst: netip.MustParsePrefix("192.0.2.0/24"), Transforms: true}}
	}},
	{"untracked", func(f *Facts) {
		f.Filter.Translates, f.Nodes[0].Returned = true, netfilter.Tracking{Untracked: true, Rule: "rule 1", Remedy: "iptables"}
	}},
	{"conntrack-zone", func(f *Facts) {
		f.Nodes[0].Sent = netfilter.Tracking{Zone: 7, Rule: "rule 1", Remedy: "iptables"}
	}},
	{"former-backend", func(f *Facts) {
		f.Kernel.Links = append(f.Kernel.Links, ctrl.Link{Name: "flannel0", Kind: ctrl.KindTUN, Up: true})
		f.Kernel.Addrs = append(f.Kernel.Addrs, ctrl.Addr{Dev: "flannel0", Prefix: netip.MustParsePrefix("10.5.1.0/32")})
	}},
	{"vxlan-port-taken", func(f *Facts) {
		f.Daemon.Kernel.Error, f.UDPPorts = "set flannel.1 up: address already in use", []uint16{8472}
	}},
	{"network-overlaps-underlay", func(f *Facts) {
		f.Kernel.Addrs = append(f.Kernel.Addrs, ctrl.Addr{Dev: "eth1", Prefix: netip.MustParsePrefix("10.5.7.7/16")})
	}},
	{"route-missing", func(f *Facts) {
		def := Lookup{LookupResult: ctrl.LookupResult{Dev: "eth0", Via: netip.MustParseAddr("192.0.2.254"),
			Match: netip.MustParsePrefix("0.0.0.0/0"), Table: ctrl.TableMain}}
		f.Nodes[0].Route, f.Nodes[0].Forward = def, def
	}},
	{"route-foreign", func(f *Facts) {
		f.Nodes[0].Route.Dev, f.Nodes[0].Route.Protocol = "tun9", 3
	}},
	{"policy-routing", func(f *Facts) { // around the tunnel
		f.Daemon.Backend = "udp"
		f.Nodes[0].Forward.Dev, f.Nodes[0].Forward.Via, f.Nodes[0].Forward.Table = "eth0", peerAddr, 99
	}},
	{"policy-routing", func(f *Facts) {
		f.Nodes[0].Forward.Dev, f.Nodes[0].Forward.Table, f.Nodes[0].Forward.Protocol = "tailscale0", 52, 3
	}},
	{"entries-stale", func(f *Facts) {
		f.Kernel.Neighbours = append(f.Kernel.Neighbours, ctrl.Neighbour{Dev: "flannel.1",
			IP: netip.MustParseAddr("10.5.66.0"), MAC: ctrl.MAC{2}})
	}},
	{"host-gw-router", func(f *Facts) {
		f.Daemon.Nodes[0].Unreachable = "192.0.2.2 is not on the link of eth0 (192.0.2.0/26): use vxlan with DirectRouting"
	}},
	{"forward-drop", func(f *Facts) { f.Filter.Blocked = []string{"chain FORWARD drops packets; remedy: iptables ..."} }},
	{"prerouting-drop", func(f *Facts) {
		f.Nodes[0].Pods = []netfilter.Verdict{{Chain: "fw", Dropped: true, Certain: true, Rule: "rule 1", Remedy: "nft insert ..."}}
	}},
	{"docker-isolation", func(f *Facts) {
		f.Docker = []netfilter.Verdict{{Chain: "raw", Dropped: true, Certain: true, Rule: "rule 1"}}
	}},
	{"tunnel-port-dropped", func(f *Facts) {
		f.Nodes[0].In = []netfilter.Verdict{{Chain: "INPUT", Dropped: true, Certain: true,
			Remedy: "iptables -I INPUT -s 192.0.2.2/32 -j ACCEPT"}}
	}},
	{"rules-missing", func(f *Facts) { f.RulesFound, f.RuleChanges = true, []string{"filter FORWARD: jump duplicate"} }},
	{"masquerade-foreign", func(f *Facts) { f.Filter.Masquerades = []string{"nftables chain POSTROUTING"} }},
	{"icmp-errors-dropped", func(f *Facts) { f.Filter.ICMPErrors, f.Filter.NoTrack = "chain INPUT", true }},
	{"duplicate-node", func(f *Facts) { f.Daemon.Nodes[0].Public = f.Daemon.Interface.Public }},
	{"duplicate-node", func(f *Facts) { f.Nodes[0].Underlay.Local, f.Nodes[0].Underlay.Dev = true, "lo" }},
	{"route-foreign", func(f *Facts) {
		f.Kernel.Routes = append(f.Kernel.Routes, ctrl.Route{Dst: netip.PrefixFrom(peerNet.Addr().Next(), 32), Kind: ctrl.Blackhole})
	}},
	{"route-foreign", func(f *Facts) {
		f.Kernel.Routes = append(f.Kernel.Routes, ctrl.Route{Dst: netip.MustParsePrefix("10.5.1.2/32"), Dev: "d0", Protocol: 3})
	}},
	{"pod-mtu", func(f *Facts) {
		f.Kernel.Links = append(f.Kernel.Links, ctrl.Link{Name: "veth0", MTU: 1200, Up: true})
		f.Ports["cni0"] = []string{"veth0"}
	}},
	{"backend-mismatch", func(f *Facts) { f.Daemon.Nodes[0].Unreachable = "VNI is 7, this node's is 1" }},
	{"wrong-interface", func(f *Facts) { f.Nodes[0].Underlay.Dev = "eth1" }},
	{"unknown-source", func(f *Facts) {
		f.Daemon.Traffic.UnknownSources = []UnknownSource{{netip.MustParseAddr("192.0.2.77"), 9, f.Now}}
	}},
	{"tunnel-port-refused", func(f *Facts) { silence(f); f.Nodes[0].Probes.Port = syscall.ECONNREFUSED }},
	{"path-mtu-blackhole", func(f *Facts) { f.Nodes[0].Probes.Large.Received = 0 }},
	{"checksum-offload", func(f *Facts) { f.Nodes[0].Probes.TCP = false }},
	{"anti-spoofing", func(f *Facts) {
		silence(f)
		f.Daemon.Backend, f.Daemon.Device = "host-gw", ""
		f.Kernel.Links, f.Kernel.FDB, f.Kernel.Neighbours = f.Kernel.Links[:2], nil, nil
	}},
	{"tunnel-blocked", silence},
	{"node-down", func(f *Facts) { silence(f); f.Nodes[0].Probes.Direct.Received = 0 }},
	{"charon-down", func(f *Facts) {
		if err := json.Unmarshal([]byte(`{"ipsec": {"error": "charon is not in PATH"}}`), &f.Daemon); err != nil {
			panic(err)
		}
	}},
	{"ipsec-missing", func(f *Facts) {
		status := `{"ipsec": {}, "nodes": [{"name": "n2", "unreachable": "no IPsec security association: the PSK differs"}]}`
		if err := json.Unmarshal([]byte(status), &f.Daemon); err != nil {
			panic(err)
		}
	}},
	{"cloud-route-missing", func(f *Facts) {
		status := `{"cloud": {"provider": "aws-vpc", "error": "the permission ec2:CreateRoute is missing"},
			"conditions": [{"name": "cloud", "reason": "the permission ec2:CreateRoute is missing"}]}`
		if err := json.Unmarshal([]byte(status), &f.Daemon); err != nil {
			panic(err)
		}
	}},
	{"not-ready", func(f *Facts) { f.Daemon.Conditions = unmet("engine", "no queues") }},
}

// TestChecks makes each fault and expects its finding and no other.
func TestChecks(t *testing.T) {
	if r := Examine(healthy(t)); len(r.Findings) > 0 || len(r.NotChecked) > 0 {
		t.Fatalf("healthy node: %+v, not checked: %+v", r.Findings, r.NotChecked)
	}
	made := map[string]bool{}
	for _, c := range faults {
		made[c.name] = true
		f := healthy(t)
		c.make(f)
		r := Examine(f)
		if len(r.Findings) != 1 || r.Findings[0].Name != c.name {
			t.Errorf("%s: found %+v", c.name, r.Findings)
			continue
		}
		if g := r.Findings[0]; g.Evidence == "" || g.Cause == "" || g.Remedy == "" {
			t.Errorf("%s: incomplete: %+v", c.name, g)
		}
	}
	for _, name := range Names() {
		if !made[name] {
			t.Errorf("no fault for the check %s", name)
		}
	}
}

// TestMissingFacts expects that checks without facts are listed with the reason, and find nothing.
func TestMissingFacts(t *testing.T) {
	all := []source{fromDaemon, fromEnv, fromSubnet, fromKernel, fromFilter, fromProbes, fromTraffic,
		fromPods, fromCNI, fromStore}
	f := &Facts{Missing: map[source]error{}, Processes: []Process{{Program: "weftd", Same: true}}}
	for _, s := range all {
		f.Missing[s] = errNotAsked
	}
	r := Examine(f)
	if len(r.Findings) > 0 {
		t.Errorf("found %+v", r.Findings)
	}
	for _, n := range r.NotChecked {
		if !strings.Contains(n.Reason, errNotAsked.Error()) {
			t.Errorf("%+v", n)
		}
	}
	if len(r.NotChecked)+len(r.Passed) != len(Names()) {
		t.Errorf("%d not checked, %d passed of %d", len(r.NotChecked), len(r.Passed), len(Names()))
	}
}

// TestStatusFacts examines another node by its status.
func TestStatusFacts(t *testing.T) {
	for _, c := range []struct{ status, want string }{
		{`{"ready": true, "conditions": [{"name": "lease", "ok": true}]}`, ""},
		{`{"conditions": [{"name": "lease", "ok": false, "reason": "no subnet yet"}]}`, "not-ready"},
		{`{"backend": "udp", "nodes": [{"name": "n2", "unreachable": "backend is vxlan, this node's is udp"}]}`,
			"backend-mismatch"},
	} {
		f, err := StatusFacts([]byte(c.status), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		r := Examine(f)
		name := ""
		for _, finding := range r.Findings {
			name += finding.Name
		}
		if name != c.want || len(r.NotChecked) < 20 {
			t.Errorf("%s: found %q, want %q; %d not checked", c.status, name, c.want, len(r.NotChecked))
		}
	}
	if _, err := StatusFacts([]byte("<html>"), time.Now()); err == nil {
		t.Error("no error without JSON")
	}
}

// TestDocumentedFindings holds docs/troubleshooting.md to the names of the checks.
func TestDocumentedFindings(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(page)) {
		if name, ok := strings.CutPrefix(line, "### "); ok {
			documented = append(documented, strings.TrimSpace(name))
		}
	}
	slices.Sort(documented)
	names := Names()
	slices.Sort(names)
	if !slices.Equal(documented, names) {
		t.Errorf("docs/troubleshooting.md has the sections %q, want %q", documented, names)
	}
}

// TestStatColumn reads a file of /proc/net/stat.
func TestStatColumn(t *testing.T) {
	const text = "entries  searched drop early_drop\n00000010  00000000 0000000a 00000000\n" +
		"00000010  00000000 00000001 00000000\n"
	if n := statColumn(text, "drop"); n != 11 {
		t.Errorf("got %d, want 11", n)
	}
	if n := statColumn(text, "absent"); n != 0 {
		t.Errorf("absent column: got %d", n)
	}
}

// TestProgramPorts reads /proc/net/udp, in which a socket of the kernel has no inode.
func TestProgramPorts(t *testing.T) {
	const text = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  351: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000000000000000 0
  352: 0100007F:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 17437 2 0000000000000000 0
`
	if ports := programPorts(text); !slices.Equal(ports, []uint16{68}) {
		t.Errorf("got %v, want [68]", ports)
	}
}
