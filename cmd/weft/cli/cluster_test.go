package cli

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/cmd/control"
	"weft/metrics"
)

// serveNode serves a node's health port on an address and returns the port.
func serveNode(t *testing.T, at netip.AddrPort, h http.Handler) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestAskCluster(t *testing.T) {
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, last}) }
	node := func(last byte, path *control.Path) control.Node {
		return control.Node{Name: "n" + strconv.Itoa(int(last)), Public: addr(last), Path: path,
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, last, 0}), 24)}
	}
	good, bad := &control.Path{Sent: 9, RTTMedian: 0.001}, &control.Path{Sent: 9, Lost: 9}
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
	}
	open := http.NewServeMux()
	open.HandleFunc(control.RowPath, answer(control.NewRow(control.Status{Ready: true,
		Nodes: []control.Node{node(1, good), node(3, bad)},
		Traffic: &metrics.Traffic{FastPath: metrics.FastPath{Active: true}, Nodes: []metrics.NodeTraffic{
			{Node: "n1", Out: metrics.Volume{Bytes: 60}, In: metrics.Volume{Bytes: 40},
				FastPath: metrics.NodeFastPath{Out: metrics.Volume{Bytes: 20}, In: metrics.Volume{Bytes: 5}}},
			{Node: "n3", Out: metrics.Volume{Bytes: 100}}}},
	}, time.Now())))
	summary := http.NewServeMux()
	summary.HandleFunc("/status", answer(map[string]any{"ready": false,
		"conditions": []control.Condition{{Name: "lease", Reason: "lost"}, {Name: "rules", OK: true}}}))
	port := serveNode(t, netip.AddrPortFrom(addr(2), 0), open)
	serveNode(t, netip.AddrPortFrom(addr(3), port), summary)
	serveNode(t, netip.AddrPortFrom(addr(5), port), http.NotFoundHandler())
	self := control.Status{Node: "n1", Ready: true, Interface: &control.Interface{Public: addr(1)},
		Lease: &control.Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24")},
		Nodes: []control.Node{node(2, good), node(3, good), node(4, &control.Path{}), node(5, good)}}
	p := clusterScreen(askCluster(t.Context(), self, port))
	const want = `  NODE  ADDRESS    KERNEL  STATE
  n1    127.0.0.1  -       ready
  n2    127.0.0.2  12 %    ready
! n3    127.0.0.3  -       NOT READY: lease: lost
! n4    127.0.0.4  -       no answer: dial tcp 127.0.0.4:PORT: connect: connection refused
  n5    127.0.0.5  -       flannel, no answer of its own

  FROM \ TO  n1       n2       n3        n4       n5
  n1                  1.00 ms  1.00 ms   -        1.00 ms
! n2         1.00 ms           lost 9/9  unknown  unknown
  n3         ?        ?                  ?        ?
  n4         ?        ?        ?                  ?
  n5         ?        ?        ?         ?
`
	got := strings.ReplaceAll(screenText(t, p, false), "127.0.0.4:"+strconv.Itoa(int(port)), "127.0.0.4:PORT")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestHealthPort(t *testing.T) {
	for flag, want := range map[string]uint16{"8081": 8081, "": 0, "0": 0, "x": 0} {
		got, err := healthPort(control.Status{Flags: map[string]string{"healthz-port": flag}})
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", flag, got, err)
		}
	}
}
