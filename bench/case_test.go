package bench

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/bench/report"
	"weft/bench/traffic"
	"weft/deploy/lab"
)

// Every description has a workload and the other way round.
func TestCasesHaveWorkloads(t *testing.T) {
	for _, c := range Cases() {
		if c.run == nil {
			t.Errorf("%s: no workload", c.Name)
		}
	}
	if got, want := len(workloads()), len(Cases()); got != want {
		t.Errorf("%d workloads for %d cases", got, want)
	}
}

func TestSelectCases(t *testing.T) {
	for _, c := range []struct{ given, want string }{
		{"tcp-1", "tcp-1"}, {"udp-64", "udp-64-1 udp-64-256 udp-64-runs"},
		{"rtt,rtt-idle", "rtt-idle rtt-sparse rtt-sparse-busy rtt-bulk rtt-busy"}, {"tcp", "tcp-1 tcp-4 tcp-16 tcp-busy"},
	} {
		selected, err := SelectCases(strings.Split(c.given, ","))
		var names []string
		for _, x := range selected {
			names = append(names, x.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.given, got, err, c.want)
		}
	}
	if _, err := SelectCases([]string{"quic"}); err == nil || !strings.Contains(err.Error(), `"quic"`) ||
		!strings.Contains(err.Error(), "rtt-busy, connect,") {
		t.Errorf("unknown workload: %v", err)
	}
}

// startPair starts a target on two nodes.
func startPair(t *testing.T, r Target) *overlay {
	t.Helper()
	o, err := start(t.Context(), r, lab.Options{Direct: true, Management: netip.MustParsePrefix("10.254.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func TestNetnsMaxRateLimits(t *testing.T) {
	o := startPair(t, KernelTargets()[0])
	for _, c := range []struct {
		offers      float64
		bound, full bool
	}{{400e3, false, true}, {50e3, true, false}} {
		network := pipe(100e3, c.offers)
		f, err := o.maxRate(traffic.UDPLoad{}, report.Seconds{}, nil,
			func(load traffic.UDPLoad) (traffic.UDPResult, error) {
				r, err := network(load.Rate)
				r.Overflowed = r.Sent - r.Received
				return r, err
			})
		if err != nil || f["generator_bound"] == 1 != c.bound || f["receiver_full"] > 0 != c.full ||
			f["flood_rate"] != min(100e3, c.offers) {
			t.Errorf("%.0f offered: %v, %v", c.offers, f, err)
		}
	}
}

func TestNetnsDaemonMemory(t *testing.T) {
	o := startPair(t, KernelTargets()[0])
	if err := o.startDaemon(o.lab.Nodes[0], []string{"/bin/sleep", "1000"}); err != nil {
		t.Fatal(err)
	}
	// Between fork and exec, the process has little memory.
	err := lab.Await(t.Context(), 10*time.Second, "memory", func() error {
		f, err := o.withUsage(func() (report.Sample, delivered, error) { return report.Sample{}, delivered{1, 1}, nil })
		if err == nil && f["memory"] < 100e3 {
			err = fmt.Errorf("%.0f bytes", f["memory"])
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A page of metrics that can be read before a measurement and not after it makes no differences,
// and one that never could is nothing to compare abilities by.
func TestNetnsPageOfMetrics(t *testing.T) {
	var broken atomic.Bool
	page := func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		if _, err := io.WriteString(w, "weft_drops_total 5\nweft_engine_feature{feature=\"x\"} 1\n"); err != nil {
			t.Error(err)
		}
	}
	o := startPair(t, routeTarget(t, "a", page))
	if names, err := o.usedFeatures(); err != nil || !slices.Equal(names, []string{"x"}) {
		t.Errorf("features %v, %v", names, err)
	}
	measure := func() (report.Sample, delivered, error) { return report.Sample{}, delivered{1, 1}, nil }
	if f, err := o.withUsage(measure); err != nil || f["daemon_drops"] != 0 {
		t.Errorf("%v, %v", f, err)
	}
	f, err := o.withUsage(func() (report.Sample, delivered, error) {
		broken.Store(true)
		return measure()
	})
	if err == nil {
		t.Errorf("%v, although the metrics failed", f)
	}
	if names, err := o.usedFeatures(); err == nil {
		t.Errorf("features %v, without metrics", names)
	}
	o.detectMetrics()
	if f, err := o.withUsage(measure); err != nil {
		t.Errorf("daemon without metrics: %v, %v", f, err)
	}
	if names, err := o.usedFeatures(); err == nil {
		t.Errorf("features %v, of a daemon without metrics", names)
	}
}

// pipe simulates a network and a sender with the given limits in packets per second.
func pipe(carries, offers float64) func(float64) (traffic.UDPResult, error) {
	return func(rate float64) (traffic.UDPResult, error) {
		if rate == 0 || rate > offers {
			rate = offers
		}
		through := min(rate, carries)
		return traffic.UDPResult{Sent: uint64(rate), Received: uint64(through), SentRate: rate,
			ReceivedRate: through}, nil
	}
}
