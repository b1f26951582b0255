package dataplane

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"weft/dataplane/fastpath"
	"weft/dataplane/fib"
	"weft/deploy/lab"
)

// skipWithoutFastPath skips a test on a host that cannot have a fast path, such as a rootless lab.
func skipWithoutFastPath(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, fastpath.ErrUnsupported) {
		t.Skip("NOT TESTED:", err)
	}
}

// fast is the config of an engine with a fast path.
var fast = Config{FastPath: FastPathAuto, Underlay: "eth0"}

// startFast is startOverlay for engines that know of each other whether they have a fast path.
func startFast(t *testing.T, o lab.Options, configs ...Config) *overlay {
	t.Helper()
	ov := startOverlay(t, o, configs...)
	for i, e := range ov.engines {
		e.mu.Lock()
		err := e.fast.err
		e.mu.Unlock()
		skipWithoutFastPath(t, err)
		if e.config.FastPath != FastPathOff && err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
	}
	ov.connectFast()
	return ov
}

// connectFast is connect with the announcements of the fast path.
func (ov *overlay) connectFast() {
	for _, e := range ov.engines {
		var others []fib.Node
		for _, o := range ov.engines {
			if o != e {
				n := o.asNode()
				n.Fast = o.FastPath().Active
				others = append(others, n)
			}
		}
		e.SetNodes(e.asNode(), others)
	}
}

func TestNetnsFastPath(t *testing.T) {
	off := Config{}
	for _, test := range []struct {
		name    string
		configs []Config
		fast    bool
	}{
		{"both", []Config{fast, fast}, true},
		{"sender", []Config{fast, off}, false},
		{"receiver", []Config{off, fast}, false},
	} {
		for _, underlay := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
			t.Run(fmt.Sprint(test.name, " ", underlay), func(t *testing.T) {
				ov := startFast(t, lab.Options{Mode: underlay}, test.configs...)
				ov.expectPing(t, 0, 1)
				ov.expectPing(t, 1, 0)
				from, to := ov.pod(0), ov.pod(1)
				for range 3 {
					must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), 50_000))
				}
				must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), 8<<20))
				must(t, lab.CheckTCP(t.Context(), to.NS, from.NS, podAddr(0), 8<<20))
				must(t, lab.CheckUDP(t.Context(), from.NS, to.NS, podAddr(1),
					0, 1, 100, 1444, 1445, 4000, 30_000, 65_000))
				for i, e := range ov.engines {
					s := e.Stats()
					t.Logf("node %d: %+v of sent %+v received %+v drops %v", i, s.FastPath, s.Sent, s.Received, s.Drops)
					if took := s.FastPath.Sent.Packets > 10 && s.FastPath.Received.Packets > 10; took != test.fast {
						t.Errorf("node %d: fast path used %v, want %v", i, took, test.fast)
					}
				}
				p, err := from.Ping(t.Context(), podAddr(1), lab.Ping{Count: 200, Interval: time.Millisecond})
				must(t, err)
				t.Logf("ping %v lost %d", p.RTTMedian(), p.Lost())
			})
		}
	}
}
