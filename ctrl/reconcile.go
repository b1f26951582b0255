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

	"weft/lease/ordered"
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
	Resync time.Duration // interval of comparisons without a notification; 0 means 10 s;
	// longer if a comparison takes long
}

const (
	defaultResync = 10 * time.Second
	// Comparing everything without a notification takes at most a thousandth of the time: 0.3 s
	// every 5 minutes with 10,000 nodes and vxlan. maxResync bounds the time until a change is
	// repaired that the kernel did not notify of.
	resyncShare = 1000
	maxResync   = 5 * time.Minute
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

	// Of the goroutine of Run.
	memory memory
	doubt  bool // the memory may be outdated

	mu               sync.Mutex
	want             Plan
	expected         *fingerprints   // of the objects of expectedPlan
	expectedPlan     Plan            // last applied, or being applied
	devices          map[string]bool // devices that want refers to
	partDevices      map[string]int  // devices of the routes in want.Parts, with their number
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
	Repairs uint64
	// WireGuard devices that run in this process, as the kernel has no WireGuard
	UserspaceWireGuard []string
}

// NewReconciler makes a reconciler. It does nothing before Run and the first Set.
func NewReconciler(k kernel, o ReconcilerOptions) *Reconciler {
	r := &Reconciler{
		k: k, log: o.Log, resync: o.Resync, changed: make(chan struct{}, 1),
		expected: newFingerprints(), partDevices: map[string]int{},
	}
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
func (r *Reconciler) Set(s State) { r.SetPlan(Plan{State: s}) }

// SetPlan replaces the wanted state. If the kernel is known to be in the state of the previous plan
// and only parts differ, applying it takes as long as the difference requires.
func (r *Reconciler) SetPlan(p Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for before, after := range ordered.Diff(r.want.Parts, p.Parts) {
		r.countDevices(before, -1)
		r.countDevices(after, 1)
	}
	r.devices = map[string]bool{}
	for _, l := range p.Links {
		r.devices[l.Name] = true
		r.devices[l.VXLAN.Parent] = true
	}
	for _, t := range p.Routes {
		r.devices[t.Dev] = true
	}
	for dev := range r.partDevices {
		r.devices[dev] = true
	}
	r.want = p
	r.generation++
	trigger(r.changed)
}

// countDevices adds n to the number of the part's routes on each device. The caller holds mu.
func (r *Reconciler) countDevices(p *Part, n int) {
	if p == nil {
		return
	}
	for _, o := range p.Objects {
		if t, ok := o.(Route); ok {
			if r.partDevices[t.Dev] += n; r.partDevices[t.Dev] == 0 {
				delete(r.partDevices, t.Dev)
			}
		}
	}
}

// Status returns the result of the last comparison.
func (r *Reconciler) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Current = r.syncedGeneration == r.generation
	return s
}

// Run applies the wanted state until ctx ends, and returns its error. The kernel's state then stays
// as it is.
func (r *Reconciler) Run(ctx context.Context) error {
	watch := func(ctx context.Context, notify func()) error {
		return r.k.Watch(ctx, r.contradicts, notify)
	}
	notified, wait := Notifications(ctx, watch,
		func(err error) { r.log.Warn("netlink watch failed, retrying", "err", err) })
	defer wait()
	var retry, took time.Duration // took: the last comparison
	timer := time.NewTimer(r.resync)
	defer timer.Stop()
	for {
		burst := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.changed:
		case <-notified:
			burst = true
		case <-timer.C:
			r.doubt = true
		}
		select {
		case <-notified: // the select above is random if both are ready
			burst = true
		default:
		}
		if burst {
			r.doubt = true
			r.debounce(ctx, Debounce(took))
		}
		start := time.Now()
		compared, ok := r.reconcileOnce(ctx)
		switch {
		case !ok:
			retry = min(max(2*retry, minRetry), maxRetry)
			timer.Reset(retry)
		case compared:
			retry, took = 0, time.Since(start)
			timer.Reset(max(r.resync, min(resyncShare*took, maxResync)))
		}
	}
}

// debounce waits for the end of a burst of notifications. A new wanted state cuts it short only
// until the first one is in place: comparing everything for each of many new states would cost too
// much while another program changes the kernel, too.
func (r *Reconciler) debounce(ctx context.Context, d time.Duration) {
	changed := r.changed
	if r.memory.valid {
		changed = nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
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
	case PolicyEvent:
		return true
	}
	return devices[e.Dev] || OverlayName(e.Dev)
}

// reconcileOnce applies the wanted state. It reports whether it compared everything, and whether
// nothing is left to retry.
func (r *Reconciler) reconcileOnce(ctx context.Context) (compared, ok bool) {
	r.mu.Lock()
	want, generation, synced := r.want, r.generation, r.syncedGeneration
	r.mu.Unlock()
	if generation == 0 {
		return false, true
	}
	compared = r.doubt || !r.memory.serves(want)
	var out outcome
	if compared {
		r.doubt = false
		out = r.compareAll(ctx, want)
	} else {
		out = r.applyDifference(ctx, want)
	}
	repairs := 0
	if synced == generation {
		repairs = len(out.done)
	}
	r.report(out, generation, repairs)
	return compared, out.err == nil
}

// outcome is the result of one comparison.
type outcome struct {
	done      []Op // succeeded
	waiting   []string
	userspace []string // WireGuard devices of this process
	links     []Link   // of the kernel, before the operations
	foreign   []Route  // inside the networks, not owned
	err       error
}

// complete reports whether all of the wanted state is in place.
func (o outcome) complete() bool { return o.err == nil && len(o.waiting) == 0 }

// reconcile compares the kernel's state with want and applies the difference.
func reconcile(ctx context.Context, k kernel, want State) outcome {
	wanted := linkNames(want.Links)
	have, err := k.Read(func(dev string) bool { return wanted[dev] })
	if err != nil {
		return outcome{err: fmt.Errorf("read kernel state: %w", err)}
	}
	out := carryOut(ctx, k, have, want)
	out.links, out.userspace = have.Links, userspaceLinks(have.Links)
	return out
}

// userspaceLinks returns the names of the WireGuard devices of this process.
func userspaceLinks(links []Link) []string {
	var names []string
	for _, l := range links {
		if l.Userspace {
			names = append(names, l.Name)
		}
	}
	return names
}

// carryOut performs the operations that turn have into want.
func carryOut(ctx context.Context, k kernel, have, want State) outcome {
	c := diff(have, want)
	out := outcome{waiting: c.waiting, foreign: c.foreign}
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
		Synced: out.complete(), Since: old.Since, Waiting: out.waiting,
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
	c := diff(have, want.Whole())
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
