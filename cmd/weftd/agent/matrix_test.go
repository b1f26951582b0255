package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/cmd/control"
)

// neighbours serves rows of other nodes on one port.
type neighbours struct {
	addr             netip.Addr
	port             uint16
	asked            atomic.Int32
	running, highest atomic.Int32 // requests at a time
}

func newNeighbours(t *testing.T, h http.HandlerFunc) *neighbours {
	t.Helper()
	n := &neighbours{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.asked.Add(1)
		now := n.running.Add(1)
		for was := n.highest.Load(); now > was && !n.highest.CompareAndSwap(was, now); {
			was = n.highest.Load()
		}
		defer n.running.Add(-1)
		h(w, r)
	}))
	t.Cleanup(s.Close)
	at := netip.MustParseAddrPort(strings.TrimPrefix(s.URL, "http://"))
	n.addr, n.port = at.Addr(), at.Port()
	return n
}

func subnetOf(a, b byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, a, b, 0}), 24)
}

// nodes returns the status of a node that knows count others at the server's address.
func (n *neighbours) nodes(count int) control.Status {
	s := control.Status{Node: "self", Ready: true, Lease: &control.Lease{Subnet: subnetOf(255, 0)}}
	for i := range count {
		s.Nodes = append(s.Nodes, control.Node{Name: fmt.Sprintf("n%03d", i), Public: n.addr,
			Subnet: subnetOf(byte(i/200), byte(i%200))})
	}
	return s
}

func askMatrix(t *testing.T, m *matrix, query url.Values) control.Cluster {
	t.Helper()
	code, body := getFrom(t, m, localClient, control.ClusterPath+"?"+query.Encode())
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	var c control.Cluster
	if err := json.Unmarshal([]byte(body), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMatrixBounds asks about a large cluster twice: only the first nodes are asked, not all at
// once, and each of them once.
func TestMatrixBounds(t *testing.T) {
	release := make(chan struct{})
	var n *neighbours
	n = newNeighbours(t, func(w http.ResponseWriter, r *http.Request) {
		if n.asked.Load() == rowsAsked {
			close(release)
		}
		<-release
		fmt.Fprint(w, `{"node":"any","ready":true,"paths":[]}`)
	})
	status := n.nodes(300)
	m := newMatrix(func() control.Status { return status }, fixedPort(int(n.port)))
	for range 2 {
		c := askMatrix(t, m, nil)
		if c.Nodes != 301 || len(c.Rows) != control.MaxRows {
			t.Fatalf("%d nodes, %d rows", c.Nodes, len(c.Rows))
		}
		for _, r := range c.Rows[1:] { // the first is that of this node
			if r.Row == nil || !r.Row.Ready {
				t.Fatalf("%+v", r)
			}
		}
	}
	if asked, highest := n.asked.Load(), n.highest.Load(); asked != control.MaxRows-1 || highest > rowsAsked {
		t.Errorf("asked %d times, %d at once", asked, highest)
	}
}

func TestMatrixAnswers(t *testing.T) {
	n := newNeighbours(t, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	status := n.nodes(2)
	status.Nodes[1].Public = netip.MustParseAddr("127.0.0.99")
	m := newMatrix(func() control.Status { return status }, fixedPort(int(n.port)))
	c := askMatrix(t, m, url.Values{control.NodeParameter: {"10.255.0.0/24", "10.0.0.0/24", "10.0.1.0/24", "gone"}})
	for i, want := range []string{"", "no answer of its own: flannel", "nothing listens", "not in the cluster"} {
		if r := c.Rows[i]; (want == "") != (r.Row != nil) || !strings.Contains(r.Error, want) {
			t.Errorf("row %d: %+v, want %q", i, r, want)
		}
	}
	none := newMatrix(func() control.Status { return status }, fixedPort(0))
	if c := askMatrix(t, none, nil); !strings.Contains(c.Note, "--healthz-port") || c.Rows[1].Error != "not asked" {
		t.Errorf("without a port: %+v", c)
	}
}

func TestIsNode(t *testing.T) {
	n := netip.MustParseAddr("192.0.2.7")
	s := control.Status{Nodes: []control.Node{{Public: n, Subnet: subnetOf(5, 1), Subnet6: netip.MustParsePrefix("fd00:1::/64")}, {}}}
	for a, want := range map[string]bool{"192.0.2.7": true, "10.5.1.0": true, "fd00:1::": true,
		"10.5.1.2": false, "192.0.2.8": false, "0.0.0.0": false, "::": false} {
		if got := isNode(s, netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}

func TestMatrixParameters(t *testing.T) {
	status := func() control.Status { return control.Status{Node: "self"} }
	many := url.Values{}
	for i := range control.MaxRows + 1 {
		many.Add(control.NodeParameter, fmt.Sprint(i))
	}
	for _, c := range []struct {
		m     *matrix
		query string
		code  int
	}{
		{newMatrix(status, requestedPort(0)), "port=8081", 200},
		{newMatrix(status, requestedPort(0)), "port=0", 400},
		{newMatrix(status, requestedPort(0)), "port=x", 400},
		{newMatrix(status, fixedPort(1)), "port=x", 200}, // not for clients of the health server
		{newMatrix(status, fixedPort(1)), many.Encode(), 400},
	} {
		if code, body := getFrom(t, c.m, localClient, control.ClusterPath+"?"+c.query); code != c.code {
			t.Errorf("%s: %d %s, want %d", c.query, code, body, c.code)
		}
	}
}

// TestMatrixForgets checks that answers that are too old do not stay.
func TestMatrixForgets(t *testing.T) {
	m := newMatrix(func() control.Status { return control.Status{Node: "self"} }, fixedPort(1))
	m.rows["old"] = rowAnswer{until: time.Now().Add(-time.Second)}
	m.rows["new"] = rowAnswer{until: time.Now().Add(time.Hour)}
	askMatrix(t, m, nil)
	if _, old := m.rows["old"]; old || len(m.rows) != 1 {
		t.Errorf("%+v", m.rows)
	}
}
