package control

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/metrics"
)

func TestNewRow(t *testing.T) {
	good := &Path{Sent: 30, Lost: 3, RTTMedian: 0.002, MTU: 1472, MaxMTU: 1472}
	worse := &Path{Sent: 10, Lost: 5, RTTMedian: 0.001, MTU: 1400, MaxMTU: 1472}
	s := Status{Node: "n1", Ready: true, Backend: "udp",
		Lease:      &Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24")},
		Conditions: []Condition{{Name: "lease", OK: true}, {Name: "rules", Reason: "gone"}},
		Nodes: []Node{
			{Name: "unprobed", Subnet6: netip.MustParsePrefix("fd00:1::/64")},
			{Name: "two", Host: "second", Subnet: netip.MustParsePrefix("10.5.2.0/24"), Path: good, Path6: worse},
			{Name: "good", Path: good, Error: "refused"},
			{Name: "bad", Unreachable: "another backend"},
		},
		Traffic: &metrics.Traffic{Nodes: []metrics.NodeTraffic{
			{Node: "two", Out: metrics.Volume{Bytes: 5}, In: metrics.Volume{Bytes: 6}},
			{Node: "two", Out: metrics.Volume{Bytes: 1}},
		}},
	}
	six := uint64(6)
	got := NewRow(s, time.Time{})
	want := Row{ID: "10.5.1.0/24", Node: "n1", Ready: true, Backend: "udp", Conditions: s.Conditions[1:], Paths: []PeerPath{
		{Node: "bad", Unreachable: "another backend"},
		{Node: "good", Refused: "refused", Sent: 30, Lost: 3, RTT: 0.002, MTU: 1472},
		{ID: "10.5.2.0/24", Node: "second", Sent: 10, Lost: 5, RTT: 0.002, MTU: 1400, SmallMTU: true, Out: &six, In: &six},
		{ID: "fd00:1::/64", Node: "unprobed"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	s.Traffic.FastPath.Active = true
	s.Traffic.Nodes[0].FastPath.In.Bytes = 4
	if p := NewRow(s, time.Time{}).Paths[2]; *p.FastOut != 0 || *p.FastIn != 4 || *p.In != 6 {
		t.Errorf("%d and %d of %+v by the fast path", *p.FastOut, *p.FastIn, p)
	}
}

// TestNewRowBound keeps the broken paths of a large cluster, then the measured ones.
func TestNewRowBound(t *testing.T) {
	s := Status{}
	for i := range 2000 {
		n := Node{Name: fmt.Sprintf("n%04d", i)}
		switch {
		case i >= 1990:
			n.Unreachable = "no answer"
		case i >= 1800:
			n.Path = &Path{Sent: 1}
		}
		s.Nodes = append(s.Nodes, n)
	}
	r := NewRow(s, time.Time{})
	if len(r.Paths) != MaxRow || r.LeftOut != 2000-MaxRow || r.Paths[0].Node != "n1990" ||
		r.Paths[10].Node != "n1800" || r.Paths[199].Node != "n1989" || r.Paths[200].Node != "n0000" {
		t.Errorf("%d paths, %d left out: %+v", len(r.Paths), r.LeftOut, r.Paths[:12])
	}
}

// peerServer serves a node on an address of the loopback network.
func peerServer(t *testing.T, h http.HandlerFunc) (netip.Addr, uint16) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	at := netip.MustParseAddrPort(strings.TrimPrefix(s.URL, "http://"))
	return at.Addr(), at.Port()
}

// TestAskPeer asks nodes that answer, refuse, lack the path, point elsewhere, and answer through
// the overlay only.
func TestAskPeer(t *testing.T) {
	addr, port := peerServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, `{"node":"n2"}`)
		case "/secret":
			w.WriteHeader(http.StatusForbidden)
		case "/elsewhere":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/garbage":
			fmt.Fprint(w, `<html>`)
		default:
			http.NotFound(w, r)
		}
	})
	closed := netip.MustParseAddr("127.0.0.99")
	reached, lost := &Path{Address: addr, Sent: 2, Lost: 1}, &Path{Address: addr, Sent: 2, Lost: 2}
	for _, c := range []struct {
		node Node
		path string
		want string // part of the error
	}{
		{Node{Public: addr}, "/ok", ""},
		{Node{Public: closed, Path: reached}, "/ok", ""},
		{Node{Public: closed, Path6: reached}, "/ok", ""},
		{Node{Public: closed, Path: lost}, "/ok", "connection refused"},
		{Node{Public: closed}, "/ok", "connection refused"},
		{Node{Name: "n2"}, "/ok", "no address of n2"},
		{Node{Public: addr}, "/secret", ErrNotPermitted.Error()},
		{Node{Public: addr}, "/other", ErrNotServed.Error()},
		{Node{Public: addr}, "/elsewhere", "302"},
		{Node{Public: addr}, "/garbage", "invalid character"},
	} {
		var row Row
		err := AskPeer(t.Context(), c.node, port, c.path, &row)
		if c.want == "" && (err != nil || row.Node != "n2") ||
			c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v %s: %+v, %v, want %q", c.node, c.path, row, err, c.want)
		}
	}
}
