package bench

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"weft/bench/traffic"
	"weft/deploy/lab"
)

// started is a rival at work between two nodes.
func started(t *testing.T, r Rival) *overlay {
	t.Helper()
	o, err := begin(t.Context(), r, lab.Options{Direct: true, Management: netip.MustParsePrefix("10.254.0.0/24")})
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

// The figures say when it was a generator that was the limit.
func TestNetnsFiguresOfTheSearch(t *testing.T) {
	o := started(t, KernelRivals()[0])
	for _, c := range []struct {
		offers      float64
		bound, full bool
	}{{400e3, false, true}, {50e3, true, false}} {
		network := pipe(100e3, c.offers)
		f, err := o.carried(traffic.UDPLoad{}, Seconds{}, nil, func(load traffic.UDPLoad) (traffic.UDPResult, error) {
			r, err := network(load.Rate)
			r.Overflowed = r.Sent - r.Received
			return r, err
		})
		if err != nil || f["generator_bound"] == 1 != c.bound || f["receiver_full"] > 0 != c.full || f["flood_rate"] != min(100e3, c.offers) {
			t.Errorf("%.0f offered: %v, %v", c.offers, f, err)
		}
	}
}

func TestNetnsMemoryOfDaemons(t *testing.T) {
	o := started(t, KernelRivals()[0])
	if err := o.startDaemon(o.lab.Nodes[0], []string{"/bin/sleep", "1000"}); err != nil {
		t.Fatal(err)
	}
	// It is there before it is the program.
	err := lab.Await(t.Context(), 10*time.Second, "memory", func() error {
		f, err := o.spent(func() (Figures, float64, float64, error) { return Figures{}, 1, 1, nil })
		if err == nil && f["memory"] < 100e3 {
			err = errors.New("hardly any")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A page of metrics that can be read before a measurement and not after it makes no differences, and one that never could
// is nothing to compare abilities by.
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
	o := started(t, routed(t, "a", page))
	if names, err := o.abilityNames(); err != nil || !slices.Equal(names, []string{"x"}) {
		t.Errorf("abilities %v, %v", names, err)
	}
	measure := func() (Figures, float64, float64, error) { return Figures{}, 1, 1, nil }
	if f, err := o.spent(measure); err != nil || f["daemon_drops"] != 0 {
		t.Errorf("%v, %v", f, err)
	}
	f, err := o.spent(func() (Figures, float64, float64, error) {
		broken.Store(true)
		return measure()
	})
	if err == nil {
		t.Errorf("%v, from a page that was read once", f)
	}
	if names, err := o.abilityNames(); err == nil {
		t.Errorf("abilities %v, from a page that cannot be read", names)
	}
	o.meter()
	if f, err := o.spent(measure); err != nil {
		t.Errorf("a daemon that has no page: %v, %v", f, err)
	}
	if names, err := o.abilityNames(); err == nil {
		t.Errorf("abilities %v, of a daemon that has no page", names)
	}
}

// pipe is a network that carries so many packets a second, and a sender that can offer so many.
func pipe(carries, offers float64) func(float64) (traffic.UDPResult, error) {
	return func(rate float64) (traffic.UDPResult, error) {
		if rate == 0 || rate > offers {
			rate = offers
		}
		through := min(rate, carries)
		return traffic.UDPResult{Sent: uint64(rate), Received: uint64(through), SentRate: rate, ReceivedRate: through}, nil
	}
}
