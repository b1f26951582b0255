package netfilter

import (
	"context"
	"slices"
	"sync"
)

// fakeApplier is an applier without a kernel.
type fakeApplier struct {
	fixedMode Mode

	mu    sync.Mutex
	err   error
	r     report
	wants []map[family]ruleset

	during func() // called during apply
}

func (a *fakeApplier) mode() Mode { return a.fixedMode }

func (a *fakeApplier) apply(_ context.Context, want map[family]ruleset) (report, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.during != nil {
		a.during()
	}
	a.wants = append(a.wants, want)
	r := a.r
	a.r.changes = nil
	return r, a.err
}

// setResult sets the result of later calls of apply.
func (a *fakeApplier) setResult(r report, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.r, a.err = r, err
}

// applied returns the arguments of apply so far.
func (a *fakeApplier) applied() []map[family]ruleset {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.wants)
}

// fakeHost is a host with one fakeApplier per mode.
type fakeHost struct {
	appliers map[Mode]*fakeApplier
	changes  chan struct{} // received by watch

	mu        sync.Mutex
	openErr   error
	removeErr error
	opens     []Mode
	removes   []Mode
}

func newFakeHost() *fakeHost {
	return &fakeHost{appliers: map[Mode]*fakeApplier{IPTables: {fixedMode: IPTables}, NFTables: {fixedMode: NFTables}},
		changes: make(chan struct{})}
}

func (h *fakeHost) open(_ context.Context, nftables bool, _ map[family]ruleset) (applier, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.openErr != nil {
		return nil, h.openErr
	}
	mode := IPTables
	if nftables {
		mode = NFTables
	}
	h.opens = append(h.opens, mode)
	return h.appliers[mode], nil
}

func (h *fakeHost) removeElsewhere(_ context.Context, chosen applier, _ func(rule) bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removes = append(h.removes, chosen.mode())
	return h.removeErr
}

func (h *fakeHost) watch(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.changes:
			changed()
		}
	}
}

// setErrors sets the errors that open and removeElsewhere return from now on.
func (h *fakeHost) setErrors(open, sweep error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.openErr, h.removeErr = open, sweep
}

// calls returns the modes opened, and those whose applier was passed to removeElsewhere.
func (h *fakeHost) calls() (opens, sweeps []Mode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.opens), slices.Clone(h.removes)
}
