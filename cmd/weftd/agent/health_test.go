package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/cmd/control"
	"weft/cmd/weftd/config"
	"weft/ctrl/netfilter"
	"weft/lease"
	"weft/metrics"
)

// fixedSource is a healthSource with a fixed status.
type fixedSource control.Status

func (s fixedSource) conditions() []control.Condition { return s.Conditions }
func (s fixedSource) watchForNodes(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, "sightings")
}
func (s fixedSource) status() control.Status {
	s.Ready, _ = allMet(s.Conditions)
	return control.Status(s)
}

func testHandler(c config.Health, s control.Status) http.Handler {
	return healthHandler(c, fixedSource(s), slog.New(slog.DiscardHandler))
}

const remoteClient, localClient = "192.0.2.1:4000", "127.0.0.1:4000"

// get requests a path as a local client.
func get(t *testing.T, h http.Handler, path string) (code int, body string) {
	t.Helper()
	return getFrom(t, h, localClient, path)
}

func getFrom(t *testing.T, h http.Handler, client, path string) (code int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = client
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestHealthPaths(t *testing.T) {
	notReady := control.Status{Conditions: []control.Condition{
		{Name: "config", OK: true}, {Name: "lease", Reason: "pool is full"}, {Name: "rules", Reason: "no iptables"},
	}}
	ready := control.Status{Ready: true, Conditions: []control.Condition{{Name: "config", OK: true}}}
	all, profile := config.Health{Metrics: config.ClientsAll}, config.Health{Metrics: config.ClientsAll, Profile: true}
	local, off := config.Health{Metrics: config.ClientsLocal}, config.Health{Metrics: config.ClientsOff}
	pageAll, pageLocal := config.Health{Page: config.ClientsAll}, config.Health{Page: config.ClientsLocal}
	noted := control.Status{Ready: true, Conditions: []control.Condition{
		{Name: "config", OK: true}, {Name: "lease", OK: true, Reason: "store away"},
	}}
	tests := []struct {
		path, client string
		config       config.Health
		status       control.Status
		code         int
		body         string // prefix
	}{
		{"/healthz", remoteClient, all, notReady, 200, "weftd is running\n"},
		{"/readyz", remoteClient, all, notReady, 503, "weftd is not ready yet\nlease: pool is full\nrules: no iptables\n"},
		{"/readyz", remoteClient, all, ready, 200, "weftd is ready\n"},
		{"/readyz", remoteClient, all, noted, 200, "weftd is ready\nlease: store away\n"},
		{"/status", localClient, all, notReady, 200, "{\n  \"build\""},
		{"/status?nodes=1", localClient, all, notReady, 200, "{\n  \"build\""},
		{"/status?nodes=no", localClient, all, notReady, 400, "nodes=\"no\": want a positive number\n"},
		{"/status", "[::1]:4000", all, notReady, 200, "{\n  \"build\""},
		{"/status", "[::ffff:127.0.0.1]:4000", all, notReady, 200, "{\n  \"build\""},
		{"/status", remoteClient, all, notReady, 200, "{\n  \"ready\": false,\n  \"conditions\""},
		{"/metrics", remoteClient, all, notReady, 200, "# HELP "},
		{"/metrics", remoteClient, local, notReady, 403, "/metrics is for clients on this node\n"},
		{"/metrics", localClient, local, notReady, 200, "# HELP "},
		{"/metrics", localClient, off, notReady, 404, ""},
		{"/", localClient, all, ready, 404, ""},
		{"/", remoteClient, pageAll, ready, 200, "<!doctype html>"},
		{"/page.js", remoteClient, pageAll, ready, 200, "\"use strict\""},
		{"/v1/status", remoteClient, pageAll, ready, 200, "{\n  \"build\""},
		{"/", localClient, pageLocal, ready, 200, "<!doctype html>"},
		{"/", remoteClient, pageLocal, ready, 403, "/ is for clients on this node\n"},
		{"/v1/status", remoteClient, pageLocal, ready, 403, "/v1/status is for clients on this node\n"},
		{"/v1/status", localClient, all, ready, 404, ""},
		{"/v1/row", remoteClient, all, ready, 200, "{\n  \"node\""},
		{"/v1/row", remoteClient, local, ready, 403, "/v1/row is for clients on this node\n"},
		{"/v1/row", remoteClient, off, ready, 403, ""},
		{"/v1/row", localClient, off, ready, 200, "{\n  \"node\""},
		{"/v1/trace", remoteClient, all, ready, 200, "sightings"},
		{"/v1/trace", remoteClient, local, ready, 403, ""},
		{"/v1/cluster", remoteClient, pageAll, ready, 200, "{\n  \"nodes\": 1"},
		{"/v1/cluster", remoteClient, pageLocal, ready, 403, ""},
		{"/v1/cluster", localClient, all, ready, 404, ""},
		{"/healthz/", localClient, all, ready, 404, ""},
		{"/debug/pprof/", localClient, all, ready, 404, ""},
		{"/debug/pprof/", localClient, profile, ready, 200, "<html>"},
		{"/debug/pprof/cmdline", localClient, profile, ready, 200, ""},
		{"/debug/pprof/", remoteClient, profile, ready, 403, ""},
		{"/debug/pprof/cmdline", remoteClient, profile, ready, 403, ""},
	}
	for _, test := range tests {
		code, body := getFrom(t, testHandler(test.config, test.status), test.client, test.path)
		if code != test.code || !strings.HasPrefix(body, test.body) {
			t.Errorf("%s from %s, --metrics=%s: %d %q, want %d %q", test.path, test.client, test.config.Metrics,
				code, body, test.code, test.body)
		}
	}
}

func TestReadyzFollowsStatus(t *testing.T) {
	for _, ready := range []bool{false, true} {
		h := testHandler(config.Health{Metrics: config.ClientsAll}, control.Status{Conditions: []control.Condition{{Name: "lease", OK: ready}}})
		want, metric := http.StatusServiceUnavailable, "\nweft_ready 0\n"
		if ready {
			want, metric = http.StatusOK, "\nweft_ready 1\n"
		}
		if code, _ := get(t, h, "/readyz"); code != want {
			t.Errorf("ready %t: %d", ready, code)
		}
		if _, body := get(t, h, "/metrics"); !strings.Contains(body, metric) {
			t.Errorf("ready %t: /metrics disagrees", ready)
		}
	}
}

// TestStatusSecrets checks that other hosts and pods learn no address or name of a node.
func TestStatusSecrets(t *testing.T) {
	s := control.Status{Node: "n1", Nodes: []control.Node{{Name: "n2", Public: netip.MustParseAddr("192.0.2.2")}}}
	_, body := getFrom(t, testHandler(config.Health{}, s), remoteClient, "/status")
	for _, secret := range []string{"n1", "n2", "192.0.2.2"} {
		if strings.Contains(body, `"`+secret+`"`) {
			t.Errorf("%s in %s", secret, body)
		}
	}
}

func TestStatusJSON(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := control.Status{
		Build: metrics.Build{Version: "v1"}, Node: "n1",
		Lease:   &control.Lease{Held: true, Subnet: netip.MustParsePrefix("10.5.1.0/24"), Since: at},
		Nodes:   []control.Node{{Name: "n2", Public: netip.MustParseAddr("192.0.2.2")}},
		Traffic: &metrics.Traffic{Drops: []metrics.Drop{{Reason: "too_short", Packets: 3}}},
	}
	h := testHandler(config.Health{}, s)
	code, body := get(t, h, "/status")
	var back struct {
		Node  string
		Lease map[string]any
		Nodes []map[string]any
	}
	if err := json.Unmarshal([]byte(body), &back); code != 200 || err != nil {
		t.Fatalf("%d, %v: %s", code, err, body)
	}
	if back.Node != "n1" || len(back.Nodes) != 1 || back.Nodes[0]["public"] != "192.0.2.2" {
		t.Errorf("got %s", body)
	}
	if back.Lease["subnet"] != "10.5.1.0/24" || back.Lease["since"] != "2026-03-01T12:00:00Z" {
		t.Errorf("lease is %v", back.Lease)
	}
	for _, absent := range []string{"expires", "subnet6"} {
		if _, there := back.Lease[absent]; there {
			t.Errorf("lease has %s, want it absent", absent)
		}
	}
	if !strings.Contains(body, `"reason": "too_short"`) {
		t.Errorf("got %s", body)
	}
}

func TestStoreStatus(t *testing.T) {
	etcd := config.Etcd{Endpoints: []string{"http://a:1"}, Prefix: "/p"}
	kube := config.Kube{Enabled: true, AnnotationPrefix: "x.y", NetworkFile: "/net-conf.json"}
	withURL := kube
	withURL.APIURL = "https://api"
	for want, l := range map[string]config.Lease{
		`{"kind":"etcd","endpoints":["http://a:1"],"prefix":"/p"`:                                 {Etcd: etcd},
		`{"kind":"file","file":"/leases"`:                                                         {Etcd: etcd, File: "/leases"},
		`{"kind":"kubernetes","prefix":"x.y","file":"/net-conf.json"`:                             {Etcd: etcd, Kube: kube},
		`{"kind":"kubernetes","endpoints":["https://api"],"prefix":"x.y","file":"/net-conf.json"`: {Kube: withURL},
	} {
		b, err := json.Marshal(newStoreStatus(l))
		if want += `,"connected":false,"revision":0}`; err != nil || string(b) != want {
			t.Errorf("got %s, %v; want %s", b, err, want)
		}
	}
}

func TestNetworkStatus(t *testing.T) {
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","IPv6Network":"fd00::/48","MTU":1400,` +
		`"Backend":{"Type":"wireguard","PSK":"secret","ListenPort":5}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(newNetworkStatus(n))
	want := `{"network":"10.5.0.0/16","subnet_len":24,"subnet_min":"10.5.1.0","subnet_max":"10.5.255.0",` +
		`"enable_nftables":false,"backend":{"ListenPort":5,"PSK":"(hidden)","Type":"wireguard"},` +
		`"unknown_keys":["MTU (did you mean Backend.MTU?)"]}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v\nwant %s", b, err, want)
	}
}

func TestStatusMetrics(t *testing.T) {
	s := control.Status{
		Ready:      true,
		Conditions: []control.Condition{{Name: "lease", OK: true}, {Name: "rules", Reason: "no"}},
		Lease:      &control.Lease{Held: true, Since: time.Now().Add(-time.Hour), Expires: time.Now().Add(time.Minute)},
		Store:      control.Store{Connected: true, Revision: 9},
		Nodes:      []control.Node{{}, {Unreachable: "no"}, {}},
		Kernel:     control.Kernel{Synced: true, Repairs: 4},
		Rules:      control.Rules{InPlace: true, Repairs: 5},
	}
	m := metricsSnapshot(s)
	if !m.Ready || !m.StoreConnected || m.StoreRevision != 9 || m.Nodes != 3 || m.Unreachable != 1 ||
		!m.ReconcilerInSync || m.KernelRepairs != 4 ||
		!m.RulesInPlace || m.RuleRepairs != 5 || len(m.Conditions) != 2 ||
		m.Conditions[0] != (metrics.Condition{Name: "lease", OK: true}) {
		t.Errorf("got %+v", m)
	}
	if l := m.Lease; !l.Held || l.Permanent || l.Age < time.Hour || l.ExpiresIn > time.Minute ||
		l.ExpiresIn < time.Minute/2 {
		t.Errorf("lease is %+v", l)
	}
	s.Lease.Expires = time.Time{}
	if !metricsSnapshot(s).Lease.Permanent {
		t.Error("a lease without expiry is not permanent")
	}
}

func TestRulesCondition(t *testing.T) {
	none := fmt.Errorf("%w: nothing found", netfilter.ErrUnsupported)
	other := errors.New("iptables: busy")
	tests := []struct {
		masq, forward bool
		status        netfilter.Status
		want          control.Condition
	}{
		{true, true, netfilter.Status{InPlace: true}, control.Condition{OK: true}},
		{true, true, netfilter.Status{}, control.Condition{Reason: "not set yet"}},
		{true, false, netfilter.Status{Err: none}, control.Condition{Reason: none.Error()}},
		{true, true, netfilter.Status{Err: none}, control.Condition{Reason: none.Error()}},
		{false, true, netfilter.Status{Err: none}, control.Condition{OK: true}},
		{false, true, netfilter.Status{Err: other}, control.Condition{Reason: other.Error()}},
		{false, true, netfilter.Status{}, control.Condition{Reason: "not set yet"}},
		{false, false, netfilter.Status{Err: other}, control.Condition{OK: true}},
	}
	required := config.Rules{KeepSource: config.On}
	if got := rulesCondition(required, netfilter.Status{Err: none}); got.OK {
		t.Error("--keep-source=true does not require a packet filter")
	}
	for _, test := range tests {
		test.want.Name = "rules"
		got := rulesCondition(config.Rules{Masquerade: test.masq, Forward: test.forward}, test.status)
		if got != test.want {
			t.Errorf("masq %t, forward %t, %+v: got %+v, want %+v", test.masq, test.forward, test.status, got,
				test.want)
		}
	}
}

func TestHealthServerShutdown(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := config.Health{IP: "127.0.0.1"}
	h, err := listenHealth(ctx, c, maxConnections, fixedSource{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	address := h.listener.Addr().String()

	res, err := http.Get("http://" + address + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "weftd is running\n" {
		t.Errorf("%q, %v", body, err)
	}
	res.Body.Close()

	// A client that never completes its request must not delay the exit.
	slow, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET /healthz HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	start := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 2*shutdownTimeout {
		t.Errorf("stopped after %v", took)
	}
	if err := slow.SetReadDeadline(time.Now().Add(readHeaderTimeout / 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(slow); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("connection still open")
	}
}

func TestHealthPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = listenHealth(t.Context(), config.Health{IP: "127.0.0.1", Port: port}, maxConnections, nil, nil)
	want := fmt.Sprintf("--healthz-port: port %d is in use, cannot listen on 127.0.0.1:%d", port, port)
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = listenHealth(t.Context(), config.Health{IP: "192.0.2.1", Port: port}, maxConnections, nil, nil)
	if err == nil || !strings.HasPrefix(err.Error(), "--healthz-ip, --healthz-port: ") {
		t.Errorf("got %v", err)
	}
}

// The kernel's switches are read from /proc/sys/net: one that is off is named with the command that
// turns it on, one that does not exist is not.
func TestForwardingOffNamesSwitch(t *testing.T) {
	dir := t.TempDir()
	write := func(path, value string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(value), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("ipv4/ip_forward", "1\n")
	write("ipv4/conf/flannel.1/forwarding", "0\n")
	write("ipv6/conf/all/forwarding", "0\n")
	both := lease.Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24"), Subnet6: netip.MustParsePrefix("fd10:5:0:1::/64")}
	got := strings.Join(forwardingOff(dir, both, []string{"flannel.1", "flannel0"}), "\n")
	want := "net.ipv4.conf.flannel/1.forwarding is 0, so packets of pods are not forwarded: sysctl -w net.ipv4.conf.flannel/1.forwarding=1\n" +
		"net.ipv6.conf.all.forwarding is 0, so packets of pods are not forwarded: sysctl -w net.ipv6.conf.all.forwarding=1"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	write("ipv4/conf/flannel.1/forwarding", "1\n")
	if got := forwardingOff(dir, lease.Lease{Subnet: both.Subnet}, []string{"flannel.1"}); got != nil {
		t.Errorf("IPv4 only, all on: %q", got)
	}
}

func TestForwardConditionNamesChain(t *testing.T) {
	got := forwardCondition(nil, netfilter.Status{InPlace: true, Blocked: []string{"chain a drops", "chain b drops"}})
	if want := (control.Condition{Name: "forward", Reason: "chain a drops; chain b drops"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := forwardCondition(nil, netfilter.Status{}); !got.OK {
		t.Errorf("without drops: %+v", got)
	}
}

func TestLeaseConditionStoreAway(t *testing.T) {
	cause := errors.New("etcd: no answer")
	tests := []struct {
		connected bool
		away      time.Duration
		want      control.Condition
	}{
		{true, time.Hour, control.Condition{Name: "lease", OK: true}},
		{false, storePatience - 10*time.Second, control.Condition{Name: "lease", OK: true}},
		{false, storePatience, control.Condition{Name: "lease", OK: true,
			Reason: "changes of other nodes not seen for 1m0s: etcd: no answer"}},
	}
	for _, test := range tests {
		state := lease.State{Held: true, Connected: test.connected, Err: cause}
		s := &snapshot{state: state, since: time.Now().Add(-test.away)}
		if got := s.leaseCondition(); got != test.want {
			t.Errorf("connected %t for %s: %+v, want %+v", test.connected, test.away, got, test.want)
		}
	}
}
