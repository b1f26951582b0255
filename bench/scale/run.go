package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
)

// Options describe a measurement.
type Options struct {
	Daemon   []string // command line, without the flags of the store and the interface
	Backend  string   // udp or vxlan
	Leases   int      // of other nodes
	Rates    []int    // changes per second
	Duration time.Duration
	Outage   time.Duration // of the store
	Patience time.Duration // limit of each wait
}

// Figures are the results.
type Figures struct {
	Backend  string
	Leases   int
	Start    time.Duration // until subnet.env is written
	StartAll time.Duration // until the last lease is routed
	RSS      int64         // bytes, before any change
	Idle     float64       // CPU time per time without changes
	New      []time.Duration
	List     int // bytes of keys and values of all leases
	Pages    []Page
	Churn    []Churn
	Flood    Flood
	Restart  Restart
	// Store outage: the CPU time per time during it, and the time from its end until a lease that
	// changed meanwhile is routed.
	OutageCPU float64
	Return    time.Duration
}

// Churn are the figures of one rate of changes.
type Churn struct {
	Rate   int     // changes per second
	Made   float64 // changes per second that etcd took
	CPU    float64 // of the daemon, per time, without packets of this measurement
	RSS    int64   // bytes at the end
	New    []time.Duration
	Settle time.Duration // until all leases are as in the store
	// Packets during the churn, by the node that they went to: the owner, the former owner up to
	// two seconds after the change, another one. Lost: packets to leases that had not changed for
	// two seconds.
	Right, Late, Wrong, Sent, Lost int
	FirstWrong                     string
	// Differing is the number of leases of which packets went to another node than the store's, or
	// of removed leases of which packets went to any, after the churn.
	Differing int
}

// run is the state of a measurement.
type run struct {
	Options
	lab     *lab.Lab
	etcd    *testetcd.Server
	daemon  *lab.Process
	cluster *cluster
	sink    *sink
	sender  sender
	next    int // lease that has not been used
}

// Measure runs the measurement. It must be called inside a lab, see package lab.
func Measure(ctx context.Context, o Options, progress io.Writer) (f *Figures, err error) {
	r := &run{Options: o, next: o.Leases}
	if r.lab, err = lab.New(ctx, lab.Options{Nodes: 1, PodsPerNode: -1}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.prepare(); err != nil {
		return nil, err
	}
	f = &Figures{Backend: o.Backend, Leases: o.Leases}
	steps := []struct {
		name string
		do   func(context.Context, *Figures) error
	}{{"start", r.start}, {"idle", r.idle}, {"new leases", r.newLeases}, {"pages", r.pages},
		{"churn", r.churn}, {"flood", r.flood}, {"restart", r.restart}, {"outage", r.outage}}
	for _, s := range steps {
		fmt.Fprintf(progress, "%s %d leases: %s\n", o.Backend, o.Leases, s.name)
		if err := s.do(ctx, f); err != nil {
			log := strings.Join(r.daemon.Tail(5), "\n")
			return f, fmt.Errorf("%s: %w\nend of the daemon's log:\n%s", s.name, err, log)
		}
	}
	return f, nil
}

func (r *run) prepare() (err error) {
	root := r.lab.Root
	r.etcd, err = testetcd.Start(testetcd.Config{
		Dir: root.Path("etcd"), Listen: netip.AddrPortFrom(root.Addr, 2379)})
	if err != nil {
		return err
	}
	r.cluster = newCluster(r.etcd, r.Backend)
	if r.sink, err = newSink(root, r.cluster); err != nil {
		return err
	}
	if r.sender, err = newSender(r.lab.Nodes[0]); err != nil {
		return err
	}
	return r.cluster.fill(r.Leases)
}

func (r *run) close() error {
	var errs []error
	if r.sink != nil {
		errs = append(errs, r.sink.close())
	}
	if r.sender.conn != nil {
		errs = append(errs, r.sender.conn.Close())
	}
	errs = append(errs, r.lab.Close())
	if r.etcd != nil {
		r.etcd.Close()
	}
	return errors.Join(errs...)
}

// start starts the daemon.
func (r *run) start(ctx context.Context, f *Figures) (err error) {
	node := r.lab.Nodes[0]
	argv := append(slices.Clone(r.Daemon), "--etcd-endpoints="+r.etcd.Endpoint(),
		"--etcd-prefix="+prefix, "--iface=eth0")
	began := time.Now()
	if r.daemon, err = node.Start(argv); err != nil {
		return err
	}
	err = lab.Await(ctx, r.Patience, "subnet.env", func() error {
		if !r.daemon.Running() {
			return errors.New("the daemon has exited")
		}
		return exists(node.Path("flannel/subnet.env"))
	})
	if err != nil {
		return err
	}
	f.Start = time.Since(began)
	if f.StartAll, err = r.awaitOwner(ctx, r.Leases-1, began); err != nil {
		return err
	}
	return r.settled(ctx)
}

// settled waits until the daemon is idle after its start.
func (r *run) settled(ctx context.Context) error {
	return lab.Await(ctx, r.Patience, "an idle daemon", func() error {
		cpu, err := r.cpuDuring(ctx, 500*time.Millisecond)
		if err == nil && cpu > 0.1 {
			err = fmt.Errorf("%.0f %% of a CPU in use", 100*cpu)
		}
		return err
	})
}

// cpuDuring returns the CPU time of the daemon per time.
func (r *run) cpuDuring(ctx context.Context, d time.Duration) (float64, error) {
	before, err := r.daemon.CPUTime()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := sleep(ctx, d); err != nil {
		return 0, err
	}
	after, err := r.daemon.CPUTime()
	return float64(after-before) / float64(time.Since(began)), err
}

// idle measures a daemon without changes.
func (r *run) idle(ctx context.Context, f *Figures) (err error) {
	if f.Idle, err = r.cpuDuring(ctx, r.Duration); err != nil {
		return err
	}
	f.List = r.cluster.bytes()
	f.RSS, err = r.daemon.RSS()
	return err
}

// newLeaseSamples is the number of new leases per measurement.
const newLeaseSamples = 20

// quietTime is the time between two new leases: changes that follow one another faster may be
// joined.
const quietTime = 200 * time.Millisecond

// newLeases measures the time from a new lease to the first packet.
func (r *run) newLeases(ctx context.Context, f *Figures) error {
	for range newLeaseSamples {
		d, err := r.addLease(ctx)
		if err != nil {
			return err
		}
		f.New = append(f.New, d)
		if err := sleep(ctx, quietTime); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) addLease(ctx context.Context) (time.Duration, error) {
	i := r.next
	r.next++
	since := time.Now()
	if err := r.cluster.change([]int{i}, nil); err != nil {
		return 0, err
	}
	return r.awaitOwner(ctx, i, since)
}

// churn measures each rate of changes.
func (r *run) churn(ctx context.Context, f *Figures) error {
	for _, rate := range r.Rates {
		c, err := r.churnAt(ctx, rate)
		if err != nil {
			return fmt.Errorf("%d changes per second: %w", rate, err)
		}
		f.Churn = append(f.Churn, c)
	}
	return nil
}

// churnAt changes leases at a rate: for the first half of the time alone, to measure the CPU time,
// and then while packets are sent and new leases are added.
func (r *run) churnAt(ctx context.Context, rate int) (c Churn, err error) {
	c.Rate = rate
	if err := r.churnAlone(ctx, &c); err != nil {
		return c, err
	}
	r.sink.reset()
	ctx, cancel := context.WithTimeout(ctx, r.Duration/2)
	defer cancel()
	var work sync.WaitGroup
	var changeErr, newErr error
	work.Go(func() { _, changeErr = r.makeChanges(ctx, rate) })
	work.Go(func() { c.Sent, c.Lost = r.sample(ctx) })
	work.Go(func() { c.New, newErr = r.addLeases(ctx) })
	work.Wait()
	if err := errors.Join(changeErr, newErr); err != nil {
		return c, err
	}
	if c.RSS, err = r.daemon.RSS(); err != nil {
		return c, err
	}
	c.Settle, c.Differing = r.settle()
	c.Right, c.Late, c.Wrong, c.FirstWrong = r.sink.totals()
	return c, nil
}

// churnAlone changes leases at a rate, without packets, and measures the CPU time.
func (r *run) churnAlone(ctx context.Context, c *Churn) error {
	ctx, cancel := context.WithTimeout(ctx, r.Duration/2)
	defer cancel()
	before, err := r.daemon.CPUTime()
	if err != nil {
		return err
	}
	began := time.Now()
	made, err := r.makeChanges(ctx, c.Rate)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := r.daemon.CPUTime()
	c.Made, c.CPU = float64(made)/took.Seconds(), float64(after-before)/float64(took)
	return err
}

// changeInterval is the time between two transactions at high rates.
const changeInterval = 10 * time.Millisecond

// makeChanges changes leases until ctx ends.
func (r *run) makeChanges(ctx context.Context, rate int) (made int, err error) {
	interval := max(time.Second/time.Duration(rate), changeInterval)
	n := max(1, int(float64(rate)*interval.Seconds()+0.5))
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return made, nil
		case <-t.C:
			if err := r.cluster.churn(n, r.Leases); err != nil {
				return made, err
			}
			made += n
		}
	}
}

// addLeases measures new leases until ctx ends.
func (r *run) addLeases(ctx context.Context) (all []time.Duration, err error) {
	for sleep(ctx, 200*time.Millisecond) == nil {
		d, err := r.addLease(ctx)
		switch {
		case ctx.Err() != nil:
			return all, nil
		case err != nil:
			return all, err
		}
		all = append(all, d)
	}
	return all, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
