package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/cmd/control"
	"weft/ctrl"
	"weft/dataplane"
	"weft/dataplane/refusal"
	"weft/lease"
	"weft/lease/ordered"
)

func TestHearing(t *testing.T) {
	var h hearing
	at := time.Unix(1000, 0)
	packets := func(sent, received uint64) []dataplane.NodeTraffic {
		return []dataplane.NodeTraffic{{Name: "n2", Sent: dataplane.Traffic{Packets: sent},
			Received: dataplane.Traffic{Packets: received}}}
	}
	describe := func() control.Node {
		n := control.Node{Name: "n2", Public: netip.MustParseAddr("192.0.2.2")}
		h.describe(&n)
		return n
	}
	if n := describe(); !n.Heard.IsZero() || !n.Sent.IsZero() {
		t.Errorf("before the first sample: %+v", n)
	}
	h.sample(packets(5, 0), at)
	if n := describe(); n.Sent != at || !n.Heard.IsZero() || n.Unanswered != 5 {
		t.Errorf("sent only: %+v", n)
	}
	second := at.Add(time.Second)
	h.sample(packets(7, 3), second)
	if n := describe(); n.Heard != second || n.Sent != second || n.Unanswered != 0 {
		t.Errorf("heard: %+v", n)
	}
	if h.due(second.Add(hearingInterval-1)) || !h.due(second.Add(hearingInterval)) {
		t.Error("the interval is wrong")
	}
	r := refusal.Refusal{To: netip.MustParseAddr("192.0.2.2"), From: netip.MustParseAddr("192.0.2.1"), Reason: "prohibited"}
	third := second.Add(time.Second)
	if !h.refuse(r, third) || h.refuse(r, third.Add(time.Second)) || !h.refuse(r, third.Add(refusalLogNode)) {
		t.Error("want the first refusal and one after a while in the log")
	}
	if n := describe(); n.Error != "prohibited, by ICMP from 192.0.2.1" || n.ErrorAt != third.Add(refusalLogNode) {
		t.Errorf("refused: %+v", n)
	}
	h.sample(packets(8, 4), third.Add(time.Hour))
	if n := describe(); n.Error != "" {
		t.Errorf("heard after the refusal: %+v", n)
	}
	h.sample(nil, third.Add(2*time.Hour))
	if n := describe(); !n.Heard.IsZero() {
		t.Errorf("after the node left: %+v", n)
	}
}

// Any address may be named by an error, so that memory and log are bounded.
func TestHearingBounds(t *testing.T) {
	var h hearing
	logged := 0
	a := netip.MustParseAddr("10.0.0.0")
	for range 3 * maxRefusals {
		a = a.Next()
		if h.refuse(refusal.Refusal{To: a}, time.Unix(1000, 0)) {
			logged++
		}
	}
	if len(h.refusals) > maxRefusals || logged != 1 {
		t.Errorf("%d addresses, %d lines", len(h.refusals), logged)
	}
}

func TestMembership(t *testing.T) {
	var m membership
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	view := func(all ...lease.Lease) *peerView {
		var parts []*ctrl.Part
		for _, l := range all {
			parts = append(parts, &ctrl.Part{Subnet: l.Subnet})
		}
		return &peerView{leases: lease.NewSet(all...), plan: ctrl.Plan{Parts: ordered.New(parts)}}
	}
	leases := func(from, to int) (all []lease.Lease) {
		for i := from; i < to; i++ {
			all = append(all, testLease(fmt.Sprintf("n%04d", i), fmt.Sprintf("10.5.%d.0/24", i), "192.0.2.1"))
		}
		return all
	}
	nodes := func(from, to int) *peerView { return view(leases(from, to)...) }
	now := time.Unix(1000, 0)
	expect := func(want string) {
		t.Helper()
		m.report(log, now)
		_, got, _ := strings.Cut(strings.TrimSpace(b.String()), "level=INFO ")
		if got != want {
			t.Errorf("logged %q, want %q", got, want)
		}
		b.Reset()
		now = now.Add(membershipInterval)
	}
	m.update(nodes(1, 2))
	expect(`msg="other nodes changed" joined="n0001 (10.5.1.0/24)" nodes=1`)
	m.update(nodes(1, 2))
	expect("")
	for i := range 100 { // a burst in many updates
		m.update(nodes(1, 2+i))
	}
	expect(`msg="other nodes changed" joined="n0002 (10.5.2.0/24), n0003 (10.5.3.0/24), n0004 (10.5.4.0/24), ` +
		`n0005 (10.5.5.0/24), n0006 (10.5.6.0/24), and 94 more" nodes=100`)
	m.update(nodes(2, 101))
	now = now.Add(-membershipInterval - 1)
	m.logged = now
	expect("") // too early
	expect(`msg="other nodes changed" left=n0001 nodes=99`)
	moved := leases(2, 101)
	moved[0].Subnet = netip.MustParsePrefix("10.5.200.0/24")
	m.update(view(moved...))
	expect(`msg="other nodes changed" joined="n0002 (10.5.200.0/24)" nodes=99`)
}

// A host that refuses all packets is blocked; one that refuses those to one node is not.
func TestHearingBlocked(t *testing.T) {
	var h hearing
	at := time.Unix(1000, 0)
	sample := func(second int, sent, other uint64, refused int) string {
		now := at.Add(time.Duration(second) * time.Second)
		n := dataplane.NodeTraffic{Name: "n2", Sent: dataplane.Traffic{Packets: sent}}
		if refused > 0 {
			n.SendError, n.SendErrorAt = syscall.EPERM, at.Add(time.Duration(refused)*time.Second-1)
		}
		h.sample([]dataplane.NodeTraffic{n, {Name: "n3", Sent: dataplane.Traffic{Packets: other}}}, now)
		return h.sendingBlocked(now)
	}
	for _, c := range []struct {
		second      int
		sent, other uint64
		refused     int
		want        string
	}{
		{1, 5, 5, 0, ""},
		{2, 5, 5, 2, ""}, // for a moment only
		{4, 5, 5, 4, ""},
		{5, 5, 5, 4, "operation not permitted"},
		{6, 5, 6, 6, ""}, // the other node is sent to
		{7, 5, 6, 7, ""},
		{10, 5, 6, 10, "operation not permitted"},
		{50, 5, 6, 10, ""}, // long ago
	} {
		if got := sample(c.second, c.sent, c.other, c.refused); got != c.want {
			t.Errorf("second %d: %q, want %q", c.second, got, c.want)
		}
	}
}
