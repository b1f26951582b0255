package ctrl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// kernel is what the reconciler needs of one; Kernel is the real one.
type kernel interface {
	// Read lists what there is; permanent neighbours and forwarding entries only of the devices that entries names.
	Read(entries func(dev string) bool) (State, error)
	// Apply performs the operations in order and returns one error for each.
	Apply(ops []Op) []error
	// Watch calls changed at the start and after changes until ctx ends.
	Watch(ctx context.Context, changed func()) error
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

	mu     sync.Mutex
	want   State
	set    bool
	status Status
}

// Status is how the last comparison of kernel and wanted state ended.
type Status struct {
	Synced  bool      // everything wanted is in place
	Since   time.Time // of the last change of Synced or of the reason
	Waiting []string  // devices that others have to make first
	Err     error     // nil if Synced or only waiting
	Repairs uint64    // operations that were applied after the state had been in place
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
	r.mu.Lock()
	r.want, r.set = s, true
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
	return r.status
}

// Run applies the wanted state until ctx ends, whose error it returns. The kernel's state stays as it is then.
func (r *Reconciler) Run(ctx context.Context) error {
	signs, wait := pokes(ctx, r.k.Watch)
	defer wait()
	retry := time.Duration(0)
	timer := time.NewTimer(r.resync)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.poke:
		case <-signs:
			pause(ctx, settle)
		case <-timer.C:
		}
		if r.once() {
			retry = 0
			timer.Reset(r.resync)
			continue
		}
		retry = min(max(2*retry, minRetry), maxRetry)
		timer.Reset(retry)
	}
}

// once compares and applies; it reports whether nothing is left to be tried again.
func (r *Reconciler) once() bool {
	r.mu.Lock()
	want, set, before := r.want, r.set, r.status
	r.mu.Unlock()
	if !set {
		return true
	}
	wanted := map[string]bool{}
	for _, l := range want.Links {
		wanted[l.Name] = true
	}
	have, err := r.k.Read(func(dev string) bool { return wanted[dev] })
	if err != nil {
		r.report(Status{Err: fmt.Errorf("read kernel state: %w", err)}, 0)
		return false
	}
	c := diff(have, want)
	errs := r.apply(c.ops)
	if len(c.conflicts) > 0 {
		errs = append(errs, conflictError(c.conflicts))
	}
	repairs := 0
	if before.Synced {
		repairs = len(c.ops)
	}
	r.report(Status{Synced: len(errs) == 0 && len(c.waiting) == 0, Waiting: c.waiting, Err: joinFew(errs)}, repairs)
	return len(errs) == 0
}

// apply performs the operations stage by stage; what depends on a device that failed is left for the next round.
func (r *Reconciler) apply(ops []Op) []error {
	var errs []error
	broken := map[string]bool{}
	for len(ops) > 0 {
		n := 1
		if _, isLink := ops[0].Object.(Link); !isLink {
			for n < len(ops) && n < maxBatch {
				n++
			}
		}
		batch := ops[:n:n]
		ops = ops[n:]
		if len(broken) > 0 {
			batch = withoutBroken(batch, broken)
		}
		for i, err := range r.k.Apply(batch) {
			if err == nil {
				continue
			}
			errs = append(errs, err)
			if _, isLink := batch[i].Object.(Link); isLink {
				broken[batch[i].Object.device()] = true
			}
		}
	}
	return errs
}

// maxBatch bounds the operations handed to the kernel in one go.
const maxBatch = 512

func withoutBroken(ops []Op, broken map[string]bool) []Op {
	var out []Op
	for _, o := range ops {
		if !broken[o.Object.device()] {
			out = append(out, o)
		}
	}
	return out
}

// report stores the status and says what changed.
func (r *Reconciler) report(s Status, repairs int) {
	r.mu.Lock()
	old := r.status
	s.Since, s.Repairs = old.Since, old.Repairs+uint64(repairs)
	changed := s.Synced != old.Synced || message(s) != message(old)
	if changed {
		s.Since = time.Now()
	}
	r.status = s
	r.mu.Unlock()
	switch {
	case repairs > 0:
		r.log.Info("kernel state repaired", "operations", repairs)
	case !changed:
	case s.Err != nil:
		r.log.Warn("kernel state is not as wanted", "error", s.Err)
	case len(s.Waiting) > 0:
		r.log.Info("waiting for devices", "devices", s.Waiting)
	default:
		r.log.Info("kernel state is in place")
	}
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
