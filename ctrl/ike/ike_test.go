package ike

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/ctrl"
)

func association(local, remote string) ctrl.Association {
	return ctrl.Association{Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(remote),
		LocalNet: netip.MustParsePrefix("10.5.1.0/24"), RemoteNet: netip.MustParsePrefix("10.5.2.0/24")}
}

// TestNames holds flannel's names of connections.
func TestNames(t *testing.T) {
	a := association("172.31.0.1", "172.31.0.2")
	if got, want := connName(a)+" "+childName(a), "172.31.0.1-10.5.1.0/24-10.5.2.0/24-172.31.0.2 10.5.1.0/24-10.5.2.0/24"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestExplain(t *testing.T) {
	for message, want := range map[string]string{
		"received AUTHENTICATION_FAILED notify error":                            "the PSK differs, or",
		"tried 1 shared key for '172.31.0.2' - '172.31.0.1', but MAC mismatched": "AUTHENTICATION_FAILED: the PSK differs",
		"received NO_PROPOSAL_CHOSEN notify, no CHILD_SA built":                  "the ESPProposal differs",
		"giving up after 5 retransmits":                                          "no answer on UDP ports 500 and 4500",
		"unable to install inbound and outbound IPsec SA (SAD) in kernel":        "lacks ESP",
		"received TS_UNACCEPTABLE notify, no CHILD_SA built":                     "other subnets",
		"sending packet: from 172.31.0.11[500] to 172.31.0.12[500] (720 bytes)":  "",
		"IKE_SA x[1] established between 172.31.0.11[x]...172.31.0.12[y]":        "",
		"configured DH group ECP_256 not supported":                              "openssl",
		"no acceptable proposal found":                                           "ESPProposal differs",
		"unable to add SAD entry with SPI c0ffee00 (FAILED)":                     "lacks ESP",
		"peer not responding, trying again (2/0)":                                "no answer",
		"no acceptable traffic selectors found":                                  "other subnets",
	} {
		s, ok := explain(message)
		if ok != (want != "") || !strings.Contains(s.reason, want) {
			t.Errorf("%s: got %q, want %q", message, s.reason, want)
		}
	}
}

func TestFound(t *testing.T) {
	now := time.Unix(1000, 0)
	child := func(state string) map[string]childSAMessage {
		return map[string]childSAMessage{"c-1": {State: state, Encap: true}}
	}
	for _, tt := range []struct {
		name string
		sas  []saMessage
		want found
	}{
		{"none", nil, found{}},
		{"negotiating", []saMessage{{State: "CONNECTING"}}, found{connecting: true}},
		{"without a child", []saMessage{{State: "ESTABLISHED", Established: 5}}, found{}},
		{"established", []saMessage{{State: "ESTABLISHED", Established: 5, Children: child("INSTALLED")}},
			found{installed: true, encap: true, established: now.Add(-5 * time.Second)}},
		{"twice", []saMessage{{State: "ESTABLISHED", Established: 5, Children: child("INSTALLED")},
			{State: "ESTABLISHED", Established: 90, Children: child("REKEYED")}},
			found{installed: true, encap: true, established: now.Add(-90 * time.Second)}},
		{"deleted", []saMessage{{State: "DELETING", Established: 5, Children: child("DELETING")}}, found{}},
	} {
		var got found
		for _, sa := range tt.sas {
			got = got.with(sa, now)
		}
		if got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestDue checks that the node with the lower address begins, and that attempts become rarer.
func TestDue(t *testing.T) {
	lower, higher := association("172.31.0.1", "172.31.0.2"), association("172.31.0.2", "172.31.0.1")
	k := &keeper{attempts: map[string]attempt{}}
	start := time.Unix(1000, 0)
	if !k.due("lower", lower, start) || k.due("lower", lower, start) {
		t.Error("the node with the lower address begins once")
	}
	if k.due("higher", higher, start) || !k.due("higher", higher, start.Add(minInitiate)) {
		t.Error("the node with the higher address waits")
	}
	count := 0
	for at := start; at.Before(start.Add(time.Hour)); at = at.Add(interval) {
		if k.due("lower", lower, at) {
			count++
		}
	}
	if count < 30 || count > 70 {
		t.Errorf("%d attempts per hour", count)
	}
}

func TestStalePID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "charon.pid")
	write := func(pid int) {
		if err := os.WriteFile(path, fmt.Appendln(nil, pid), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(os.Getpid()) // another program, to which the number passed
	if err := removeStale(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if err := removeStale(path); err != nil {
		t.Errorf("without a file: %v", err)
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skipf("NOT TESTED: a running charon: %v", err)
	}
	charon := filepath.Join(t.TempDir(), "charon") // the name of the process is that of the file
	if err := os.Symlink(sleep, charon); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(charon, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write(cmd.Process.Pid)
	err = checkRunning(path)
	if err == nil || !strings.Contains(err.Error(), "another charon runs (process ") {
		t.Errorf("with a running charon: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
}

func TestSetKeepsState(t *testing.T) {
	m := New(nil)
	a, b := association("172.31.0.1", "172.31.0.2"), association("172.31.0.1", "172.31.0.3")
	b.RemoteNet = netip.MustParsePrefix("10.5.3.0/24")
	m.Set(ctrl.IKE{}, []ctrl.Association{a, b})
	m.update(connName(a), func(p *Peer) { p.Rekeys = 3 })
	m.Set(ctrl.IKE{}, []ctrl.Association{a})
	m.update(connName(b), func(p *Peer) { p.Rekeys = 4 }) // a late event
	if s := m.Status(); len(s.Peers) != 1 || s.Peers[a].Rekeys != 3 {
		t.Errorf("got %+v", s.Peers)
	}
}
