package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"weft/deploy/lab"
)

// TestNetnsDoctorRules produces the same faults with the rules of either variant of iptables.
func TestNetnsDoctorRules(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			d := &doctorLab{cluster: newCluster(t, lab.Options{}, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`),
				env: []string{"PATH=" + onlyVariant(t, variant)}}
			d.startAll("--ip-masq", "--iptables-forward-rules=false")
			d.check(socketPath, []fault{
				{name: "forward-drop", make: "iptables -P FORWARD DROP", undo: "iptables -P FORWARD ACCEPT"},
				{name: "tunnel-port-dropped", make: "iptables -I INPUT -p udp --dport 8472 -j DROP",
					undo: "iptables -D INPUT -p udp --dport 8472 -j DROP"},
			})
			if err := d.daemons[0].Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			d.check(noDaemon, []fault{
				{name: "rules-missing", make: "iptables-save >/run/rules; iptables -t nat -F FLANNEL-POSTRTG",
					undo: "iptables-restore </run/rules"},
				{name: "masquerade-foreign", make: "iptables -t nat -A POSTROUTING -s 10.5.0.0/16 -j MASQUERADE",
					undo: "iptables -t nat -D POSTROUTING -s 10.5.0.0/16 -j MASQUERADE"},
				{name: "icmp-errors-dropped", make: "iptables -A INPUT -m conntrack --ctstate INVALID -j DROP",
					undo: "iptables -D INPUT -m conntrack --ctstate INVALID -j DROP"},
			})
		})
	}
}

// onlyVariant returns a directory of programs that has one variant of iptables, and no nft.
func onlyVariant(t *testing.T, variant string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	link := func(name, program string) {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("NOT TESTED: %v", err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			link(family+suffix, family+"-"+variant+suffix)
		}
	}
	for _, name := range []string{"sh", "ip"} {
		link(name, name)
	}
	return dir
}

// TestNetnsDoctorWireGuard examines nodes with WireGuard, in the daemons if the kernel has none.
func TestNetnsDoctorWireGuard(t *testing.T) {
	d := newDoctorLab(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`)
	d.check(socketPath, []fault{
		{name: "tunnel-blocked", node: 1, make: "iptables -I INPUT -p udp --dport 51820 -j DROP",
			undo: "iptables -D INPUT -p udp --dport 51820 -j DROP"},
		{name: "ip-forward-off", make: "echo 0 >/proc/sys/net/ipv4/ip_forward",
			undo: "echo 1 >/proc/sys/net/ipv4/ip_forward"},
	})
}

func TestNetnsDoctorIPIP(t *testing.T) {
	const network = `{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}`
	d := &doctorLab{cluster: newCluster(t, lab.Options{}, network)}
	if !d.Nodes[0].HasDriver("ipip") {
		t.Skip("NOT TESTED: this kernel has no ipip")
	}
	d.startAll()
	d.check(socketPath, []fault{
		{name: "tunnel-blocked", node: 1, make: "iptables -I INPUT -p 4 -j DROP",
			undo: "iptables -D INPUT -p 4 -j DROP"},
		{name: "ip-forward-off", make: "echo 0 >/proc/sys/net/ipv4/ip_forward",
			undo: "echo 1 >/proc/sys/net/ipv4/ip_forward"},
	})
}
