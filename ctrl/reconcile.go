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

// kernel is the part of Kernel that the reconciler uses.
type kernel interface {
	// Read lists the kernel's state, with the entries and peers of the devices that detail selects.
	Read(detail func(dev string) bool) (State, error)
	// Apply performs the operations in order and returns one error for each. ctx ends long ones.
	Apply(ctx context.Context, ops []Op) []error
	// Watch calls notify at the start and after each relevant change until ctx ends or the
	// subscription breaks.
	Watch(ctx context.Context, relevant func(Event) bool, notify func()) error
}

// ReconcilerOptions tune a Reconciler; the zero value is ready for use.
type ReconcilerOptions struct {
	Log    *slog.Logger  // nil discards
	Resync time.Duration // interval of comparisons without a notification; 0 means 10 s
}

const (
	defaultResync = 10 * time.Second
	// Back-off of a failing reconciliation. Notifications of the kernel cut it short.
	minRetry = 250 * time.Millisecond
	maxRetry = 10 * time.Second
)

// Reconciler keeps the kernel in the last State that was Set. Set and Status are safe for
// concurrent use with Run.
type Reconciler struct {
	k       kernel
	log     *slog.Logger
	resync  time.Duration
	changed chan struct{} // Set was called

	mu               sync.Mutex
	want             State
	devices          map[string]bool // devices that want refers to
	generation       int             // number of calls of Set
	syncedGeneration int             // the last generation that was in place
	status           Status
	lastRepairLog    time.Time
}

// Status is the result of the last comparison of the kernel's state with the wanted state.
type Status struct {
	Synced  bool      // all of the wanted state is in place
	Current bool      // Synced refers to the last Set, not to an earlier one
	Since   time.Time // of the last change of Synced or of the reason
	Waiting []string  // external devices that are missing or down
	Err     error     // nil if Synced or only waiting
	// Repairs counts operations on a state that had been in place, so that another program must
	// have changed it.
	Repairs     uint64
	Unreachable []Unreachable // nodes that the wanted state does not reach
	// WireGuard devices that run in this process, as the kernel has no WireGuard
	UserspaceWireGuard []string
}

// NewReconciler makes a reconciler. It does nothing before Run and the first Set.
func NewReconciler(k kernel, o ReconcilerOptions) *Reconciler {
	r := &Reconciler{k: k, log: o.Log, resync: o.Resync, changed: make(chan struct{}, 1)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.resync <= 0 {
		r.resync = defaultResync
	}
	r.status.Since = time.Now()
	return r
}

// Set replaces the wanted state. The reconciler owns the slices from now on.
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
	r.generation++
	r.mu.Unlock()
	trigger(r.changed)
}

// Status returns the result of the last comparison.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Current, s.Unreachable = r.syncedGeneration == r.generation, r.want.Unreachable
	return s
}

// Run applies the wanted state until ctx ends, and returns its error. The kernel's state then stays
// as it is.
func (r *Reconciler) Run(ctx context.Context) error {
	watch := func(ctx context.Context, notify func()) error {
		return r.k.Watch(ctx, r.relevant,
			notify)
	}
	notified, wait := Notifications(ctx, watch,
		func(err error) { r.log.Warn("netlink watch failed, retrying", "err", err) })
	defer wait()
	var retry, took time.Duration
	timer := time.NewTimer(r.resync)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.changed:
		case <-notified:
			r.debounce(ctx, Debounce(took))
		case <-timer.C:
		}
		start := time.Now()
		if r.reconcileOnce(ctx) {
			retry = 0
			timer.Reset(r.resync)
		} else {
			retry = min(max(2*retry, minRetry), maxRetry)
			timer.Reset(retry)
		}
		took = time.Since(start)
	}
}

// debounce waits for the end of a burst of notifications; a new wanted state cuts it short.
func (r *Reconciler) debounce(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-r.changed:
	case <-t.C:
	}
}

// relevant reports whether an event may concern wanted or owned state.
func (r *Reconciler) relevant(e Event) bool {
	r.mu.Lock()
	networks, devices := r.want.Networks, r.devices
	r.mu.Unlock()
	switch e.Kind {
	case RouteEvent:
		return Contains(networks, e.Dst)
	case NeighEvent:
		return e.Permanent && devices[e.Dev]
	}
	return devices[e.Dev] || OverlayName(e.Dev)
}

// reconcileOnce compares and applies. It reports whether nothing is left to retry.
func (r *Reconciler) reconcileOnce(ctx context.Context) bool {
	r.mu.Lock()
	want, generation, synced := r.want, r.generation, r.syncedGeneration
	r.mu.Unlock()
	if generation == 0 {
		return true
	}
	out := reconcile(ctx, r.k, want)
	repairs := 0
	if synced == generation {
		repairs = len(out.done)
	}
	r.report(out, generation, repairs)
	return out.err == nil
}

// outcome is the result of one comparison.
type outcome struct {
	done      []Op // succeeded
	waiting   []string
	userspace []string // WireGuard devices of this process
	err       error
}

// reconcile compares the kernel's state with want and applies the difference.
func reconcile(ctx context.Context, k kernel, want State) outcome {
	wanted := linkNames(want.Links)
	have, err := k.Read(func(dev string) bool { return wanted[dev] })
	if err != nil {
		return outcome{err: fmt.Errorf("read kernel state: %w", err)}
	}
	c := diff(have, want)
	out := outcome{waiting: c.waiting}
	for _, l := range have.Links {
		if l.Userspace {
			out.userspace = append(out.userspace, l.Name)
		}
	}
	var errs []error
	out.done, errs = apply(ctx, k, c.ops)
	if len(c.conflicts) > 0 {
		errs = append(errs, conflictError(c.conflicts))
	}
	out.err = joinFirst(errs)
	return out
}

// linkNames returns the set of the links' names.
func linkNames(links []Link) map[string]bool {
	names := map[string]bool{}
	for _, l := range links {
		names[l.Name] = true
	}
	return names
}

// apply performs the operations. It skips those on a device that could not be created or changed;
// they are left for the next comparison.
func apply(ctx context.Context, k kernel, ops []Op) (done []Op, errs []error) {
	broken := map[string]bool{}
	for len(ops) > 0 {
		n := 1
		if !configuresDevice(ops[0]) {
			for n < len(ops) && !configuresDevice(ops[n]) {
				n++
			}
		}
		batch := slices.DeleteFunc(slices.Clone(ops[:n]),
			func(o Op) bool { return broken[o.Object.device()] })
		ops = ops[n:]
		for i, err := range k.Apply(ctx, batch) {
			if err == nil {
				done = append(done, batch[i])
				continue
			}
			errs = append(errs, err)
			if configuresDevice(batch[i]) {
				broken[batch[i].Object.device()] = true
			}
		}
	}
	return done, errs
}

// configuresDevice reports whether the operation concerns a device itself.
func configuresDevice(o Op) bool {
	switch o.Object.(type) {
	case Link, Tunnel:
		return true
	}
	return false
}

// report stores the outcome and logs changes.
func (r *Reconciler) report(out outcome, generation, repairs int) {
	r.mu.Lock()
	old := r.status
	s := Status{
		Synced: out.err == nil && len(out.waiting) == 0, Since: old.Since, Waiting: out.waiting,
		Err:     out.err,
		Repairs: old.Repairs + uint64(repairs), UserspaceWireGuard: out.userspace,
	}
	changed := s.Synced != old.Synced || reason(s) != reason(old)
	if changed {
		s.Since = time.Now()
	}
	if s.Synced {
		r.syncedGeneration = generation
	}
	r.status = s
	r.mu.Unlock()
	switch {
	case repairs > 0:
		r.logRepair(repairs, out.done[0])
	case !changed:
	case s.Err != nil:
		r.log.Error("cannot apply kernel state, retrying", "err", s.Err)
	case len(s.Waiting) > 0:
		r.log.Info("waiting for devices", "devices", s.Waiting)
	default:
		r.log.Info("kernel state applied")
	}
}

// repairLogInterval limits the log of repairs: another program that keeps changing a setting must
// not fill the disk.
const repairLogInterval = time.Minute

func (r *Reconciler) logRepair(repairs int, first Op) {
	level := slog.LevelDebug
	if r.lastRepairLog.IsZero() || time.Since(r.lastRepairLog) >= repairLogInterval {
		level, r.lastRepairLog = slog.LevelWarn, time.Now()
	}
	r.log.Log(context.Background(), level, "kernel state was changed by another program, repaired",
		"operations", repairs, "first", first.String())
}

// reason returns why a Status is not synced, for comparison.
func reason(s Status) string {
	m := strings.Join(s.Waiting, " ")
	if s.Err != nil {
		m += ": " + s.Err.Error()
	}
	return m
}

// joinFirst joins the first errors only: if 5,000 routes fail for one reason, three errors are
// enough.
func joinFirst(errs []error) error {
	const shown = 3
	if len(errs) > shown {
		errs = append(errs[:shown:shown], fmt.Errorf("and %d more", len(errs)-shown))
	}
	return errors.Join(errs...)
}

// ApplyOnce applies the wanted state without a Reconciler: before the packet engine starts, it
// frees the device name and port that an earlier backend left. Missing external devices are not an
// error.
func ApplyOnce(k kernel, want State) error { return reconcile(context.Background(), k, want).err }

// Cleanup removes everything with Weft's mark or flannel's names, in any network and thus of all
// daemons on this host. It returns the removed objects.
func Cleanup(k kernel) (removed []string, err error) {
	networks := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	out := reconcile(context.Background(), k, State{Networks: networks})
	for _, o := range out.done {
		removed = append(removed, o.Object.String())
	}
	return removed, out.err
}

// Differences reads the kernel's state and describes the operations that it lacks to be the wanted
// one, at most limit. It changes nothing.
func (r *Reconciler) Differences(limit int) ([]string, error) {
	r.mu.Lock()
	want, generation := r.want, r.generation
	r.mu.Unlock()
	if generation == 0 {
		return nil, nil
	}
	wanted := linkNames(want.Links)
	have, err := r.k.Read(func(dev string) bool { return wanted[dev] })
	if err != nil {
		return nil, fmt.Errorf("read kernel state: %w", err)
	}
	c := diff(have, want)
	var texts []string
	for _, o := range c.ops {
		texts = append(texts, o.String())
	}
	texts = append(texts, c.conflicts...)
	if more := len(texts) - limit; more > 0 {
		texts = append(texts[:limit:limit], fmt.Sprintf("and %d more", more))
	}
	return texts, nil
}
