package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/ctrl/doctor"
	"weft/deploy/lab"
)

// doctorPatience bounds the wait for a finding: an examination takes up to three seconds.
const doctorPatience = 10 * time.Second

// socketPath is the daemon's control socket, and noDaemon a path without one.
const (
	socketPath = "/run/weft/weftd.sock"
	noDaemon   = "/run/weft/none.sock"
)

// doctorLab is a cluster whose daemons have the name that the doctor looks for.
type doctorLab struct {
	*cluster
	daemons []*member
	flags   []string // of each weft doctor
	env     []string // of all programs
}

func newDoctorLab(t *testing.T, network string, flags ...string) *doctorLab {
	t.Helper()
	return newDoctorLabOf(t, lab.Options{}, network, flags...)
}

func newDoctorLabOf(t *testing.T, o lab.Options, network string, flags ...string) *doctorLab {
	t.Helper()
	d := &doctorLab{cluster: newCluster(t, o, network)}
	d.startAll(flags...)
	return d
}

// startAll starts a daemon on every node and attaches the pods.
func (d *doctorLab) startAll(flags ...string) {
	d.t.Helper()
	for _, n := range d.Nodes {
		d.daemons = append(d.daemons, d.startNamed(n, flags...))
	}
	for _, m := range d.daemons {
		m.awaitReady()
		m.attach()
	}
	d.awaitMesh()
}

// program returns the path of this test binary under the name of a program, which it then is.
func program(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// startNamed starts a daemon under its own name.
func (d *doctorLab) startNamed(n *lab.Node, flags ...string) *member {
	d.t.Helper()
	p, err := n.Start(append([]string{program(d.t, "weftd"), fmt.Sprintf("--healthz-port=%d", clusterHealth),
		"--etcd-endpoints=" + d.endpoint()}, flags...), append(d.env, asDaemon+"=1")...)
	if err != nil {
		d.t.Fatal(err)
	}
	return &member{Process: p, node: n, t: d.t}
}

// weft runs a command of the operator's tool in a node and decodes its output into v.
func (d *doctorLab) weft(n *lab.Node, v any, args ...string) error {
	file := filepath.Join(d.t.TempDir(), "output")
	p, err := n.Start(append([]string{"sh", "-c", `out=$1; shift; exec "$0" "$@" >$out`,
		program(d.t, "weft"), file}, args...), append(d.env, asDaemon+"=1")...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	if _, err := p.Wait(ctx); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, p.Log())
	}
	return err
}

// expect waits until the doctor finds exactly these faults in the first node.
func (d *doctorLab) expect(socket string, want ...string) {
	d.t.Helper()
	await(d.t, doctorPatience, "findings "+strings.Join(want, ", "), func() error {
		var r doctor.Report
		args := append([]string{"doctor", "--json", "--control-socket=" + socket}, d.flags...)
		if err := d.weft(d.Nodes[0], &r, args...); err != nil {
			return err
		}
		var have []string
		for _, f := range r.Findings {
			if f.Evidence == "" || f.Cause == "" || f.Remedy == "" {
				return fmt.Errorf("incomplete finding %+v", f)
			}
			have = append(have, f.Name)
		}
		have = slices.Compact(have)
		if !slices.Equal(have, want) {
			return fmt.Errorf("found %q, want %q: %+v", have, want, r.Findings)
		}
		return nil
	})
}

// expectSkipped expects that without a subnet file exactly these checks cannot be made for want of
// it.
func (d *doctorLab) expectSkipped(socket string, want ...string) {
	d.t.Helper()
	var r doctor.Report
	args := append([]string{"doctor", "--json", "--control-socket=" + socket}, d.flags...)
	if err := d.weft(d.Nodes[0], &r, args...); err != nil {
		d.t.Fatal(err)
	}
	var have []string
	for _, n := range r.NotChecked {
		if strings.HasPrefix(n.Reason, "subnet.env") || strings.HasPrefix(n.Reason, "pod subnet") {
			have = append(have, n.Name)
		}
	}
	if !slices.Equal(have, want) {
		d.t.Errorf("%s: not checked for want of the subnet file: %q, want %q", socket, have, want)
	}
}

// fault is a fault and how to undo it: lines for sh, a key in etcd, or a function that returns the
// one that undoes it.
type fault struct {
	name       string // of the finding
	node       int    // index of the node in which the lines run
	make, undo string
	key, value string // below the prefix
	produce    func(t *testing.T) (undo func())
}

// repeat returns a fault that runs a line over and over, against a daemon that repairs it.
func repeat(name, line, undo string) fault {
	return fault{name: name,
		make: "(while :; do " + line + "; sleep 0.02; done) >/dev/null 2>&1 & echo $! >/run/loop",
		undo: "kill $(cat /run/loop); " + undo}
}

// produce makes a fault. It returns the function that undoes it.
func (d *doctorLab) produce(f fault) (undo func()) {
	d.t.Helper()
	undone := func() {}
	if f.produce != nil {
		undone = f.produce(d.t)
	}
	if f.key != "" {
		d.put(clusterPrefix+f.key, f.value)
	}
	if f.make != "" {
		d.shell(f.node, f.make)
	}
	return func() {
		if f.key != "" {
			d.delete(clusterPrefix + f.key)
		}
		if f.undo != "" {
			d.shell(f.node, f.undo)
		}
		undone()
	}
}

// shell runs a command line in a node.
func (d *doctorLab) shell(node int, line string) {
	d.t.Helper()
	p, err := d.Nodes[node].Start([]string{"sh", "-ec", line}, append(d.env, asDaemon+"=1")...)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	if code, err := p.Wait(ctx); err != nil || code != 0 {
		d.t.Fatalf("%s: exit %d, %v: %s", line, code, err, p.Log())
	}
}

// check produces each fault in turn and expects the finding of its name, and none before and after.
func (d *doctorLab) check(socket string, faults []fault) {
	d.expect(socket)
	for _, f := range faults {
		d.run(f.name, func() {
			defer d.produce(f)()
			d.expect(socket, f.name)
		})
	}
	d.expect(socket)
}

// run runs a subtest, to which the methods of d report.
func (d *doctorLab) run(name string, body func()) {
	outer := d.t
	outer.Run(name, func(t *testing.T) {
		d.t = t
		defer func() { d.t = outer }()
		body()
	})
}

// TestNetnsDoctorUDP produces faults of a node with the udp backend.
func TestNetnsDoctorUDP(t *testing.T) {
	d := newDoctorLab(t, clusterNetwork)
	peer, peerSubnet := d.Nodes[1].Addr.String(), d.daemons[1].env().Subnet.Masked().String()
	const link = "ip link add d0 type veth peer name d1; ip link set d1 up; ip link set d0 up; "
	d.check(socketPath, []fault{
		{name: "ip-forward-off", make: "echo 0 >/proc/sys/net/ipv4/ip_forward",
			undo: "echo 1 >/proc/sys/net/ipv4/ip_forward"},
		{name: "device-forwarding-off", make: "echo 0 >/proc/sys/net/ipv4/conf/flannel0/forwarding",
			undo: "echo 1 >/proc/sys/net/ipv4/conf/flannel0/forwarding"},
		{name: "br-netfilter-missing",
			make: "iptables -N KUBE-SERVICES; echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables",
			undo: "iptables -X KUBE-SERVICES; echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables"},
		{name: "forward-drop", make: "nft add table inet fw; " +
			"nft 'add chain inet fw f { type filter hook forward priority 0; policy drop; }'",
			undo: "nft delete table inet fw"},
		{name: "tunnel-port-dropped", make: "iptables -I INPUT -p udp --dport 8285 -j DROP",
			undo: "iptables -D INPUT -p udp --dport 8285 -j DROP"},
		{name: "tunnel-port-dropped", make: "iptables -I OUTPUT -p udp --dport 8285 -j REJECT",
			undo: "iptables -D OUTPUT -p udp --dport 8285 -j REJECT"},
		{name: "tunnel-blocked", node: 1, make: "iptables -I INPUT -p udp --dport 8285 -j DROP",
			undo: "iptables -D INPUT -p udp --dport 8285 -j DROP"},
		{name: "tunnel-port-refused", node: 1, make: "iptables -I INPUT -p udp --dport 8285 -j REJECT",
			undo: "iptables -D INPUT -p udp --dport 8285 -j REJECT"},
		{name: "path-mtu-blackhole", node: 1,
			make: "iptables -I INPUT -p udp --dport 8285 -m length --length 1300: -j DROP",
			undo: "iptables -D INPUT -p udp --dport 8285 -m length --length 1300: -j DROP"},
		{name: "checksum-offload", node: 1, make: "iptables -I INPUT -i flannel0 -p tcp -j DROP",
			undo: "iptables -D INPUT -i flannel0 -p tcp -j DROP"},
		{name: "route-foreign", make: link + "ip route add " + peerSubnet + " dev d0",
			undo: "ip link del d0"},
		{name: "policy-routing",
			make: link + "ip route add 10.5.0.0/16 dev d0 table 52; ip rule add pref 5270 lookup 52",
			undo: "ip rule del pref 5270; ip link del d0"},
		{name: "pod-mtu", make: "ip link set cni0 mtu 1500", undo: "ip link set cni0 mtu 1472"},
		{name: "bridge-down", make: "ip link set cni0 down", undo: "ip link set cni0 up"},
		{name: "bridge-subnet",
			make: "ip link add docker0 type bridge; ip addr add 10.5.255.1/24 dev docker0; ip link set docker0 up",
			undo: "ip link del docker0"},
		{name: "network-overlaps-underlay", make: link + "ip addr add 10.5.254.7/32 dev d0",
			undo: "ip link del d0"},
		{name: "node-down", make: "ip route add blackhole " + peer, undo: "ip route del blackhole " + peer},
		{name: "backend-mismatch", key: "/subnets/10.5.254.0-24",
			value: `{"PublicIP":"172.31.0.99","BackendType":"vxlan"}`},
		{name: "duplicate-node", key: "/subnets/10.5.254.0-24",
			value: `{"PublicIP":"` + d.Nodes[0].Addr.String() + `"}`},
	})
	t.Run("fix", func(t *testing.T) {
		d.shell(0, "echo 0 >/proc/sys/net/ipv4/ip_forward")
		d.expect(socketPath, "ip-forward-off")
		var after doctor.Report
		if err := d.weft(d.Nodes[0], &after, "doctor", "--fix", "--probe=false", "--json"); err != nil {
			t.Fatal(err)
		}
		for _, f := range after.Findings {
			if f.Name == "ip-forward-off" {
				t.Errorf("after --fix: %+v", f)
			}
		}
		d.expect(socketPath)
	})
	t.Run("unknown-source", func(t *testing.T) {
		c, err := d.Root.Dial("udp", netip.AddrPortFrom(d.Nodes[0].Addr, udpPort))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// An IPv4 header without payload, from a pod of the other node to one of this node.
		inner := make([]byte, 20)
		inner[0], inner[3], inner[8], inner[9] = 0x45, 20, 64, 253
		copy(inner[12:], d.Nodes[1].Pods[0].Addr.AsSlice())
		copy(inner[16:], d.Nodes[0].Pods[0].Addr.AsSlice())
		if _, err := c.Write(inner); err != nil {
			t.Fatal(err)
		}
		d.expect(socketPath, "unknown-source")
	})
}

// TestNetnsDoctorAll judges the second node by its own answer.
func TestNetnsDoctorAll(t *testing.T) {
	d := newDoctorLab(t, clusterNetwork)
	expect := func(want string) {
		t.Helper()
		await(t, patience, "findings on the other node: "+want, func() error {
			var reports []struct {
				Error  string
				Report doctor.Report
			}
			err := d.weft(d.Nodes[0], &reports, "doctor", "--all", "--json")
			if err != nil || len(reports) != 2 || reports[1].Error != "" {
				return fmt.Errorf("%+v, %w", reports, err)
			}
			found := ""
			for _, f := range reports[1].Report.Findings {
				found += f.Name
			}
			if found != want {
				return fmt.Errorf("%+v", reports[1].Report.Findings)
			}
			return nil
		})
	}
	expect("")
	d.shell(1, "echo 0 >/proc/sys/net/ipv4/ip_forward")
	expect("not-ready")
}

// TestNetnsDoctorVXLAN produces faults that a running daemon repairs or whose check needs none: the
// first node's daemon is stopped with SIGSTOP, so the kernel's state alone is examined.
func TestNetnsDoctorVXLAN(t *testing.T) {
	d := newDoctorLabOf(t, lab.Options{Mode: lab.ModeNIC}, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`,
		"--ip-masq")
	peerSubnet := d.daemons[1].env().Subnet.Masked().String()
	tunnel := d.daemons[1].env().Subnet.Masked().Addr().String()
	d.check(socketPath, []fault{
		{name: "tunnel-port-dropped", make: "iptables -I INPUT -p udp --dport 8472 -j DROP",
			undo: "iptables -D INPUT -p udp --dport 8472 -j DROP"},
		{name: "tunnel-blocked", node: 1, make: "iptables -I INPUT -p udp --dport 8472 -j DROP",
			undo: "iptables -D INPUT -p udp --dport 8472 -j DROP"},
		{name: "checksum-offload", node: 1, make: "iptables -I INPUT -i flannel.1 -p tcp -j DROP",
			undo: "iptables -D INPUT -i flannel.1 -p tcp -j DROP"},
		// The TCP checksum of the inner packet is set to a constant behind the tunnel device, as by
		// a card that computes it wrongly: 39 and 66 bytes of UDP, VXLAN, Ethernet and IPv4
		// headers.
		{name: "checksum-offload", make: "nft add table ip nic; " +
			"nft 'add chain ip nic out { type filter hook output priority 300; }'; " +
			"nft add rule ip nic out udp dport 8472 @th,312,8 6 @th,528,16 set 0xbeef",
			undo: "nft delete table ip nic"},
		repeat("state-contested", "ip link set flannel.1 down", "true"),
		{name: "device-missing", produce: d.replaceDevice},
		repeat("entries-stale", "ip neigh replace 10.5.250.0 lladdr 2:0:0:0:0:9 dev flannel.1 nud permanent",
			"ip neigh del 10.5.250.0 dev flannel.1 || true"),
		{name: "vxlan-port-taken", produce: d.takePort},
	})
	if err := d.daemons[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.expect(socketPath, "daemon-hung")
	d.check(noDaemon, []fault{
		{name: "route-missing", make: "ip route del " + peerSubnet,
			undo: "ip route add " + peerSubnet + " via " + tunnel + " dev flannel.1 onlink proto 157"},
		{name: "rules-missing", make: "iptables -F FLANNEL-FWD",
			undo: "iptables -A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT; " +
				"iptables -A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT"},
		{name: "rules-missing",
			make: "iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
			undo: "iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD"},
		{name: "masquerade-foreign", make: "iptables -t nat -A POSTROUTING -s 10.5.0.0/16 -j MASQUERADE",
			undo: "iptables -t nat -D POSTROUTING -s 10.5.0.0/16 -j MASQUERADE"},
		{name: "icmp-errors-dropped",
			make: "iptables -A INPUT -m conntrack --ctstate INVALID -j DROP",
			undo: "iptables -D INPUT -m conntrack --ctstate INVALID -j DROP"},
		{name: "tunnel-mtu", make: "ip link set eth0 mtu 1400", undo: "ip link set eth0 mtu 1500"},
		{name: "docker-isolation", make: "ip link add docker0 mtu 1450 type bridge; " +
			"ip addr add " + d.daemons[0].env().Subnet.Masked().Addr().Next().Next().Next().Next().String() +
			"/32 dev docker0; iptables -t raw -A PREROUTING -d " + d.daemons[0].env().Subnet.Masked().String() +
			" ! -i docker0 -j DROP",
			undo: "ip link del docker0; iptables -t raw -D PREROUTING -d " +
				d.daemons[0].env().Subnet.Masked().String() + " ! -i docker0 -j DROP"},
		{name: "two-daemons", make: "ln -s /bin/sleep /run/weftd; /run/weftd 1000 >/dev/null 2>&1 & echo $! >/run/pid",
			undo: "kill $(cat /run/pid)"},
	})
	d.daemons[0].Kill()
	<-d.daemons[0].Done()
	d.expect(noDaemon, "daemon-not-running")
}

// TestNetnsDoctorHostGW produces faults of the host-gw backend and of the store.
func TestNetnsDoctorHostGW(t *testing.T) {
	d := newDoctorLab(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`)
	d.check(socketPath, []fault{
		{name: "anti-spoofing", node: 1, make: "iptables -t raw -I PREROUTING -s 10.5.0.0/16 -j DROP",
			undo: "iptables -t raw -D PREROUTING -s 10.5.0.0/16 -j DROP"},
		{name: "host-gw-router", key: "/subnets/10.5.254.0-24",
			value: `{"PublicIP":"192.0.2.9","BackendType":"host-gw"}`},
		{name: "subnet-env-missing", make: "mv /run/flannel/subnet.env /run/env; mkdir /run/flannel/subnet.env",
			undo: "rmdir /run/flannel/subnet.env; mv /run/env /run/flannel/subnet.env"},
	})
	d.expect(noDaemon)
	d.run("without a subnet file", func() {
		d.flags = []string{"--subnet-file=/run/none"}
		defer func() { d.flags = nil }()
		d.expect(socketPath, "subnet-env-missing")
		d.expectSkipped(socketPath)
		d.expectSkipped(noDaemon, "pod-mtu", "rules-missing")
	})
	d.etcd.Close()
	d.expect(socketPath, "store-down")
}

// TestNetnsBundle writes a bundle on a node whose config, log and environment hold a secret.
func TestNetnsBundle(t *testing.T) {
	const secret = "hunter2-XYZ"
	d := newDoctorLab(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"udp","PSK":"`+secret+`"}}`)
	n := d.Nodes[0]
	d.shell(0, "echo 'weftd --etcd-password="+secret+"' >/run/weftd.log; cd /run; "+program(t, "weft")+
		" bundle --all -o /run/bundle.tar.gz --log=/run/weftd.log")
	unpacked := n.Path("bundle")
	d.shell(0, "mkdir /run/bundle; tar -C /run/bundle --strip-components=1 -xzf /run/bundle.tar.gz")
	for name, want := range map[string]string{
		"status.json": `"backend": "udp"`, "metrics.txt": "weft_nodes 1", "doctor.txt": "nothing found",
		"kernel/state.txt": "flannel0", "kernel/sysctl.txt": "net/ipv4/ip_forward = 1",
		"files/run/flannel/subnet.env": "FLANNEL_MTU", "files/run/weftd.log": "--etcd-password=(hidden)",
		"programs/ip_rule.txt": "lookup main", "cluster.json": `"ready": true`,
	} {
		text, err := os.ReadFile(filepath.Join(unpacked, name))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v, no %q in %.300s", name, err, want, text)
		}
	}
	err := filepath.WalkDir(unpacked, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.Contains(string(text), secret) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
