package scale

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// TestNetnsChurn changes hundreds of leases per second below a real daemon and follows packets to
// every one of them: at no time may a packet go to a node that did not have the lease, no packet to
// an unchanged lease may be lost, and afterwards the daemon's table must be the store's.
func TestNetnsChurn(t *testing.T) {
	lab.SkipWithoutTUN(t)
	weftd := filepath.Join(t.TempDir(), "weftd")
	build := exec.Command("go", "build", "-o", weftd, "weft/cmd/weftd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	for _, backend := range []string{"udp", "vxlan"} {
		t.Run(backend, func(t *testing.T) {
			var progress strings.Builder
			f, err := Measure(t.Context(), Options{
				Daemon:  []string{weftd, "--iptables-forward-rules=false"},
				Backend: backend, Leases: 400, Rates: []int{500}, Duration: 3 * time.Second,
				Outage: time.Second, Patience: 30 * time.Second,
			}, &progress)
			if err != nil {
				t.Fatalf("%v\n%s", err, progress.String())
			}
			f.check(t)
			if err := f.Write(t.Output()); err != nil {
				t.Error(err)
			}
		})
	}
}

// check fails the test for each packet that went astray. It looks at no time: a busy machine is not
// a fault.
func (f *Figures) check(t *testing.T) {
	t.Helper()
	for _, c := range f.Churn {
		if c.Wrong != 0 || c.Lost != 0 || c.Differing != 0 {
			t.Errorf("%d changes/s: %d packets to wrong nodes (%s), %d of %d lost, %d leases differ",
				c.Rate, c.Wrong, c.FirstWrong, c.Lost, c.Sent, c.Differing)
		}
		if c.Right == 0 || c.Sent == 0 || len(c.New) == 0 {
			t.Errorf("%d changes/s: nothing was checked: %+v", c.Rate, c)
		}
	}
	if r := f.Restart; r.Lost != 0 || r.Differing != 0 || r.Sent == 0 {
		t.Errorf("restart of the others: %+v", r)
	}
	if len(f.Pages) != 3 || f.Flood.Quiet <= 0 || f.Flood.Churn <= 0 {
		t.Errorf("pages %+v, flood %+v", f.Pages, f.Flood)
	}
}
