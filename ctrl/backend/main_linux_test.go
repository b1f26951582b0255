package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/ctrl"
	"weft/ctrl/underlay"
	"weft/dataplane"
	"weft/dataplane/fib"
	"weft/deploy/lab"
	"weft/lease"
)

// daemonEnv makes the test binary a daemon that applies the leases in a file to its node's kernel.
const daemonEnv = "WEFT_TEST_DAEMON"

// The values of daemonEnv: the families of the daemon's interface.
const ipv4Env, bothEnv = "4", "46"

func TestMain(m *testing.M) {
	if os.Getenv(daemonEnv) != "" {
		if err := daemon(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(lab.Main(leakCheck{m}))
}

// leakCheck fails a run that passed but leaked goroutines.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	status := l.m.Run()
	if status == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return status
}

// order is the input of a daemon: a file that the test replaces for each change.
type order struct {
	Network json.RawMessage
	Self    lease.Lease
	All     []lease.Lease
	Options LocalOptions
}

// report is the output of a daemon.
type report struct {
	Iface       underlay.Iface
	Attrs       lease.Attrs
	MTU         int
	Synced      bool
	Err         string
	Repairs     uint64
	Unreachable []ctrl.Unreachable
	Order       time.Time // modification time of the order that is applied
}

const (
	orderFile  = "/run/order.json"
	reportFile = "/run/report.json"
)

// testDaemon is weftd without a store.
type testDaemon struct {
	k     *ctrl.Kernel
	r     *ctrl.Reconciler
	iface underlay.Iface
	read  time.Time
	order order
	last  report
	// unreachable is of the current plan.
	unreachable []ctrl.Unreachable

	network json.RawMessage // that local was prepared for
	local   LocalNode
	engine  *dataplane.Engine // of the udp backend, if the kernel does not carry it
	ended   chan struct{}     // the engine's Run has returned
	cancel  func()            // ends it
}

func daemon() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	k, err := ctrl.OpenKernel(log)
	if err != nil {
		return err
	}
	defer k.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	// Repairs must come from notifications, not from the timer.
	d := testDaemon{k: k, r: ctrl.NewReconciler(k, ctrl.ReconcilerOptions{Log: log, Resync: time.Minute})}
	defer d.stopEngine()
	changes := make(chan underlay.Iface)
	wg.Go(func() {
		if err := d.r.Run(ctx); !errors.Is(err, context.Canceled) {
			log.Error("reconciler ended", "err", err)
		}
	})
	wg.Go(func() {
		err := underlay.Watch(ctx, underlay.Options{IPv4: true, IPv6: os.Getenv(daemonEnv) == bothEnv},
			func() underlay.Iface { return underlay.Iface{} },
			func(i underlay.Iface, err error) {
				if err != nil {
					log.Error("no interface", "err", err)
					return
				}
				select {
				case changes <- i:
				case <-ctx.Done():
				}
			})
		if !errors.Is(err, context.Canceled) {
			log.Error("interface watch ended", "err", err)
		}
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return k.Shutdown(context.WithoutCancel(ctx))
		case d.iface = <-changes:
			d.read = time.Time{}
		case <-tick.C:
		}
		if err := d.step(ctx); err != nil {
			log.Error("step", "err", err)
			return err
		}
	}
}

// step applies a new order and writes a report.
func (d *testDaemon) step(ctx context.Context) error {
	info, err := os.Stat(orderFile)
	if err != nil || d.iface.Name == "" {
		return nil // no order yet
	}
	if !info.ModTime().Equal(d.read) {
		if err := d.follow(ctx, info.ModTime()); err != nil {
			return err
		}
	}
	s := d.r.Status()
	now := d.last
	now.Synced, now.Repairs, now.Unreachable, now.Err = s.Synced, s.Repairs, d.unreachable, ""
	if s.Err != nil {
		now.Err = s.Err.Error()
	}
	b, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return writeFile(reportFile, b)
}

func (d *testDaemon) follow(ctx context.Context, at time.Time) error {
	b, err := os.ReadFile(orderFile)
	if err != nil {
		return err
	}
	d.order = order{}
	if err := json.Unmarshal(b, &d.order); err != nil {
		return err
	}
	n, err := lease.ParseNetwork(d.order.Network)
	if err != nil {
		return err
	}
	if string(d.network) != string(d.order.Network) {
		if d.local, err = PrepareNode(d.k, n, d.iface, d.order.Options); err != nil {
			return err
		}
		d.network = d.order.Network
	}
	d.local.Iface = d.iface
	backend, err := New(n, d.local)
	if err != nil {
		return err
	}
	a := backend.Advertisement()
	if len(d.order.All) > 0 {
		if backend, err = d.engineFor(ctx, n, backend); err != nil {
			return err
		}
		plan := NewPlanner(backend, d.order.Self).Plan(lease.NewSet(d.order.All...))
		d.r.SetPlan(plan)
		d.unreachable = plan.Whole().Unreachable
	}
	d.read = at
	d.last = report{Iface: d.iface, Attrs: a.Attrs, MTU: a.MTU, Order: at}
	return nil
}

// engineFor starts or stops the packet engine and returns the backend with the name of its device.
func (d *testDaemon) engineFor(ctx context.Context, n lease.Network, b Backend) (Backend, error) {
	a := b.Advertisement()
	if !a.Userspace {
		d.stopEngine()
		return b, nil
	}
	if d.engine == nil {
		d.local.Device = ""
		if err := ctrl.ApplyOnce(d.k, b.Plan(d.order.Self, nil)); err != nil {
			return nil, err
		}
		e, err := dataplane.Open(dataplane.Config{Device: "flannel%d", MTU: a.MTU,
			Log:  slog.New(slog.NewTextHandler(os.Stderr, nil)),
			Bind: a.Listen})
		if err != nil {
			return nil, err
		}
		ctx, d.cancel = context.WithCancel(ctx)
		d.engine, d.ended = e, make(chan struct{})
		go func() {
			defer close(d.ended)
			if err := e.Run(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "engine ended:", err)
			}
		}()
	}
	var others []fib.Node
	for _, l := range d.order.All {
		if l.Node != d.order.Self.Node {
			others = append(others, fibNode(l, a))
		}
	}
	d.engine.SetNodes(fibNode(d.order.Self, a), others)
	d.local.Device = d.engine.Device()
	return New(n, d.local)
}

func fibNode(l lease.Lease, a Advertisement) fib.Node {
	return fib.Node{Name: l.Node, Prefixes: []netip.Prefix{l.Subnet},
		Endpoint: netip.AddrPortFrom(l.PublicIP, a.Listen.Port())}
}

func (d *testDaemon) stopEngine() {
	if d.engine != nil {
		d.cancel()
		<-d.ended
		if err := d.engine.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close engine:", err)
		}
		d.engine, d.local.Device = nil, ""
	}
}

// writeFile replaces a file atomically.
func writeFile(path string, b []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
