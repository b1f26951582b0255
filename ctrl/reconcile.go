package ctrl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// kernel is what the reconciler needs of one; Kernel is the real one.
type kernel interface {
	// read lists what there is; of the devices that detail names also what lives on them.
	read(detail func(dev string) bool) (State, error)
	// apply performs the operations in order and returns one error for each. ctx ends what takes long.
	apply(ctx context.Context, ops []op) []error
	// watch calls changed at the start and after each relevant change until ctx ends or it breaks.
	watch(ctx context.Context, relevant func(event) bool, changed func()) error
}

// ReconcilerOptions tune a Reconciler; the zero value is ready for use.
type ReconcilerOptions struct {
	Log    *slog.Logger  // nil: silent
	Resync time.Duration // how often the kernel is compared without a sign of change; 0: 10 s
}

const (
	defaultResync = 10 * time.Second
	// Back-off of a failing reconciliation. The kernel's signs cut it short.
	minRetry = 250 * time.Millisecond
	maxRetry = 10 * time.Second
)

// Reconciler keeps the kernel as the last State that was Set. Set and Status are safe for concurrent use with Run.
type Reconciler struct {
	k      kernel
	log    *slog.Logger
	resync time.Duration
	poke   chan struct{}

	mu      sync.Mutex
	want    State
	devices map[string]bool // that want is about
	age     int             // how often want was set
	status  Status
	synced  int       // the age that was in place last
	told    time.Time // when a repair was last logged
}

// Status is how the last comparison of kernel and wanted state ended.
type Status struct {
	Synced      bool          // everything wanted is in place
	Current     bool          // the last Set has been, so that Synced is not about the one before
	Since       time.Time     // of the last change of Synced or of the reason
	Waiting     []string      // devices that are not there, or not up, and not ours to make so
	Err         error         // nil if Synced or only waiting
	Repairs     uint64        // operations on a state that had been in place, so that someone else must have changed it
	Unreachable []Unreachable // nodes that the wanted state has no path to
}

// NewReconciler makes a reconciler that does nothing before Run and the first Set.
func NewReconciler(k kernel, o ReconcilerOptions) *Reconciler {
	r := &Reconciler{k: k, log: o.Log, resync: o.Resync, poke: make(chan struct{}, 1)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.resync <= 0 {
		r.resync = defaultResync
	}
	r.status.Since = time.Now()
	return r
}

// Set replaces the wanted state; the slices belong to the reconciler from now on.
func (r *Reconciler) Set(s State) {
	devices := map[string]bool{}
	for _, l := range s.Links {
		devices[l.Name] = true
		devices[l.VXLAN.Parent] = true
	}
	for _, t := range s.Routes {
		devices[t.Dev] = true
	}
	r.mu.Lock()
	r.want, r.devices = s, devices
	r.age++
	r.mu.Unlock()
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Status reports the last comparison.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Current, s.Unreachable = r.synced == r.age, r.want.Unreachable
	return s
}

// Run applies the wanted state until ctx ends, whose error it returns. The kernel's state stays as it is then.
func (r *Reconciler) Run(ctx context.Context) error {
	watch := func(ctx context.Context, changed func()) error { return r.k.watch(ctx, r.relevant, changed) }
	signs, wait := pokes(ctx, watch, func(err error) { r.log.Warn("watching the kernel broke off, trying again", "error", err) })
	defer wait()
	var retry, took time.Duration
	timer := time.NewTimer(r.resync)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.poke:
		case <-signs:
			r.settle(ctx, settleAfter(took))
		case <-timer.C:
		}
		start := time.Now()
		if r.once(ctx) {
			retry = 0
			timer.Reset(r.resync)
		} else {
			retry = min(max(2*retry, minRetry), maxRetry)
			timer.Reset(retry)
		}
		took = time.Since(start)
	}
}

// settle waits for the end of a burst of signs; a new wanted state cuts it short.
func (r *Reconciler) settle(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-r.poke:
	case <-t.C:
	}
}

// relevant says whether an event may be about what we want or own.
func (r *Reconciler) relevant(e event) bool {
	r.mu.Lock()
	networks, devices := r.want.Networks, r.devices
	r.mu.Unlock()
	switch e.what {
	case routeEvent:
		return claims{networks: networks}.inside(e.dst)
	case entryEvent:
		return e.lasting && devices[e.dev]
	}
	return devices[e.dev] || overlayName(e.dev)
}

// once compares and applies; it reports whether nothing is left to be tried again.
func (r *Reconciler) once(ctx context.Context) bool {
	r.mu.Lock()
	want, age, synced := r.want, r.age, r.synced
	r.mu.Unlock()
	if age == 0 {
		return true
	}
	out := bringAbout(ctx, r.k, want)
	repairs := 0
	if synced == age {
		repairs = len(out.done)
	}
	r.report(out, age, repairs)
	return out.err == nil
}

// outcome is what one comparison came to.
type outcome struct {
	done    []op // that worked
	waiting []string
	err     error
}

// bringAbout compares the kernel's state with want and applies the difference.
func bringAbout(ctx context.Context, k kernel, want State) outcome {
	wanted := map[string]bool{}
	for _, l := range want.Links {
		wanted[l.Name] = true
	}
	have, err := k.read(func(dev string) bool { return wanted[dev] })
	if err != nil {
		return outcome{err: fmt.Errorf("read kernel state: %w", err)}
	}
	c := diff(have, want)
	out := outcome{waiting: c.waiting}
	var errs []error
	out.done, errs = apply(ctx, k, c.ops)
	if len(c.conflicts) > 0 {
		errs = append(errs, conflictError(c.conflicts))
	}
	out.err = joinFew(errs)
	return out
}

// apply performs the operations; what is on a device that could not be made or changed is left for the next round.
func apply(ctx context.Context, k kernel, ops []op) (done []op, errs []error) {
	broken := map[string]bool{}
	for len(ops) > 0 {
		n := 1
		if !onDevice(ops[0]) {
			for n < len(ops) && !onDevice(ops[n]) {
				n++
			}
		}
		batch := slices.DeleteFunc(slices.Clone(ops[:n]), func(o op) bool { return broken[o.object.device()] })
		ops = ops[n:]
		for i, err := range k.apply(ctx, batch) {
			if err == nil {
				done = append(done, batch[i])
				continue
			}
			errs = append(errs, err)
			if onDevice(batch[i]) {
				broken[batch[i].object.device()] = true
			}
		}
	}
	return done, errs
}

// onDevice says whether the operation is about a device as such.
func onDevice(o op) bool {
	switch o.object.(type) {
	case Link, Tunnel:
		return true
	}
	return false
}

// report stores the outcome and says what changed.
func (r *Reconciler) report(out outcome, age, repairs int) {
	r.mu.Lock()
	old := r.status
	s := Status{Synced: out.err == nil && len(out.waiting) == 0, Since: old.Since, Waiting: out.waiting, Err: out.err,
		Repairs: old.Repairs + uint64(repairs)}
	changed := s.Synced != old.Synced || message(s) != message(old)
	if changed {
		s.Since = time.Now()
	}
	if s.Synced {
		r.synced = age
	}
	r.status = s
	r.mu.Unlock()
	switch {
	case repairs > 0:
		r.tellRepair(repairs, out.done[0])
	case !changed:
	case s.Err != nil:
		r.log.Error("kernel state is not as wanted", "error", s.Err)
	case len(s.Waiting) > 0:
		r.log.Info("waiting for devices", "devices", s.Waiting)
	default:
		r.log.Info("kernel state is in place")
	}
}

// tellEvery is how often a repair is logged: someone who fights with us over a setting must not fill the disk.
const tellEvery = time.Minute

func (r *Reconciler) tellRepair(repairs int, first op) {
	level := slog.LevelDebug
	if r.told.IsZero() || time.Since(r.told) >= tellEvery {
		level, r.told = slog.LevelWarn, time.Now()
	}
	r.log.Log(context.Background(), level, "someone else changed our kernel state, repaired", "operations", repairs, "first", first.String())
}

// message is what a Status says, for comparison.
func message(s Status) string {
	m := strings.Join(s.Waiting, " ")
	if s.Err != nil {
		m += ": " + s.Err.Error()
	}
	return m
}

// joinFew joins the first errors: of 5,000 routes that fail for one reason three are enough.
func joinFew(errs []error) error {
	const shown = 3
	if len(errs) > shown {
		errs = append(errs[:shown:shown], fmt.Errorf("and %d more", len(errs)-shown))
	}
	return errors.Join(errs...)
}

// ApplyOnce brings about the wanted state without a Reconciler: before the packet engine starts, so that it finds its
// device name and port free of what an earlier backend left. Devices that are awaited are no error.
func ApplyOnce(k kernel, want State) error { return bringAbout(context.Background(), k, want).err }

// Cleanup removes what carries our mark, or flannel's names, whatever its network, so of all daemons of this host. It says
// what that was.
func Cleanup(k kernel) (removed []string, err error) {
	networks := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	out := bringAbout(context.Background(), k, State{Networks: networks})
	for _, o := range out.done {
		removed = append(removed, o.object.String())
	}
	return removed, out.err
}
