package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

const (
	// watchLag bounds the delay of the watch. For this long after a write, a list that lacks the
	// written lease is not taken as a loss.
	watchLag = 2 * time.Second
	// clockCheckInterval is how often a waiting holder reads the wall clock: timers follow the
	// monotonic clock, which stops while the machine sleeps.
	clockCheckInterval = time.Minute
)

// holder is the state of one Run. Only Run's goroutine uses it.
type holder struct {
	m      *Manager
	report func(State)

	state   State
	dirty   bool // state must be reported
	claimed bool // a claim has succeeded: state.Self is set
	held    bool // this node held state.Self when the store was last read
	listed  bool // a list has been received

	list       Set // the store's last list, without the grace peers
	peers      gracePeers
	due        time.Time // of the claim (not held; zero: now) or renewal (held; zero: never)
	lagUntil   time.Time // lists received earlier may lack the last write
	retry      backoff
	ownErr     error // of the last claim or renewal
	watchErr   error // of the last watch
	lastLogged string
}

func newHolder(m *Manager, report func(State)) *holder {
	return &holder{m: m, report: report, peers: gracePeers{grace: m.options.PeerGrace}}
}

// step claims or renews if that is due, and reports the state if it has changed.
func (h *holder) step(ctx context.Context) {
	now := time.Now()
	h.checkOwn(now)
	h.expirePeers(now)
	if h.held && h.isDue(now) {
		h.renew(ctx)
	}
	if !h.held && h.isDue(now) {
		h.claim(ctx)
	}
	reportable := h.dirty && (h.listed || h.ownErr != nil || h.watchErr != nil)
	if !reportable || ctx.Err() != nil {
		return
	}
	h.dirty = false
	h.state.Held = h.held && h.listed
	h.state.Err = h.ownErr
	if h.ownErr == nil {
		h.state.Err = h.watchErr
	}
	h.logOnce()
	h.report(h.state)
}

// logOnce logs an error once while it lasts, and the recovery from it.
func (h *holder) logOnce() {
	text := ""
	if h.state.Err != nil {
		text = h.state.Err.Error()
	}
	switch {
	case text == h.lastLogged:
	case text != "":
		h.m.options.Log.Warn("lease store failed, retrying",
			"err", h.state.Err, "held", h.state.Held)
	case h.listed:
		h.m.options.Log.Info("lease store recovered",
			"leases", h.state.All.Len(), "revision", h.state.Revision)
	}
	h.lastLogged = text
}

// pause returns how long Run may wait for an event before the next step.
func (h *holder) pause(now time.Time) time.Duration {
	d := clockCheckInterval
	for _, t := range []time.Time{h.due, h.lagUntil, h.peers.nextExpiry()} {
		if t.After(now) {
			d = min(d, t.Sub(now))
		}
	}
	if h.isDue(now) {
		d = 0
	}
	return d
}

// isDue reports whether it is time to claim or to renew.
func (h *holder) isDue(now time.Time) bool {
	if h.due.IsZero() {
		return !h.held
	}
	return passed(h.due, now)
}

// claim asks for a lease. Its first choice is the subnet of the last lease.
func (h *holder) claim(ctx context.Context) {
	r := h.m.currentRequest()
	if h.claimed {
		r.Previous, r.Previous6 = h.state.Self.Subnet, h.state.Self.Subnet6
	}
	l, err := h.m.store.Claim(ctx, r)
	if !h.record(err) {
		return
	}
	log := h.m.options.Log.Info
	if h.claimed && !l.SameSubnets(h.state.Self) {
		log = h.m.options.Log.Error // running pods keep addresses of the old subnet
		h.peers.remove(h.state.Self)
	}
	log("lease claimed",
		"subnet", l.Subnet, "subnet6", l.Subnet6, "publicIP", l.Public(), expiry(l),
		"previous", r.Previous, "previous6", r.Previous6)
	h.held, h.claimed = true, true
	h.setLease(l)
}

// renew extends the lease and publishes the current attributes.
func (h *holder) renew(ctx context.Context) {
	l := h.state.Self
	l.Attrs = h.m.currentRequest().Attrs
	l, err := h.m.store.Renew(ctx, l)
	if errors.Is(err, ErrLost) {
		h.release(err.Error())
		return
	}
	if h.record(err) {
		h.m.options.Log.Info("lease renewed",
			"subnet", l.Subnet, "subnet6", l.Subnet6, "publicIP", l.Public(), expiry(l))
		h.setLease(l)
	}
}

// expiry returns the log attribute for the expiry of l; it is empty if l has none.
func expiry(l Lease) slog.Attr {
	if l.Expires.IsZero() {
		return slog.Attr{}
	}
	return slog.Time("expires", l.Expires)
}

// record stores the result of a claim or renewal, schedules the retry if it failed, and reports
// whether it succeeded.
func (h *holder) record(err error) bool {
	if err != nil {
		h.due = time.Now().Add(h.retry.next())
		h.dirty = h.dirty || !sameError(h.ownErr, err)
		h.ownErr = err
		return false
	}
	h.retry, h.ownErr, h.dirty = backoff{}, nil, true
	return true
}

// sameError reports whether err has the text of before, which may be nil.
func sameError(before, err error) bool { return before != nil && before.Error() == err.Error() }

// setLease stores a lease that was just written and schedules its renewal.
func (h *holder) setLease(l Lease) {
	now := time.Now()
	l.Expires = l.Expires.Round(0)
	h.state.Self = l
	h.due = renewAt(l, now, lengthened(h.m.options.RenewMargin))
	h.lagUntil = now.Add(watchLag)
}

// release marks the lease as lost and makes a claim due in the same step, so that a quick recovery
// is never reported as a loss.
func (h *holder) release(reason string) {
	h.m.options.Log.Warn("lease lost, claiming again",
		"subnet", h.state.Self.Subnet, "subnet6", h.state.Self.Subnet6, "reason", reason)
	h.held, h.due, h.dirty = false, time.Time{}, true
}

// attrsChanged makes a renewal due if the published attributes differ.
func (h *holder) attrsChanged() {
	if h.held && !h.state.Self.Attrs.Equal(h.m.currentRequest().Attrs) {
		h.due = time.Now()
	}
}

// handle processes an event of the watch.
func (h *holder) handle(e event, now time.Time) {
	if e.err != nil {
		h.dirty = h.dirty || !sameError(h.watchErr, e.err)
		h.watchErr, h.state.Connected = e.err, false
		if h.held && (errors.Is(e.err, ErrInUse) || errors.Is(e.err, ErrLost)) {
			h.release(e.err.Error())
		}
		return
	}
	before, lost := h.state.Revision, h.listed && h.dataLost(e.list, now)
	if lost {
		if h.held {
			h.due = now // the expiry in the store may differ from state.Self.Expires
		}
		h.peers.keep(h.state.All, now)
	}
	if h.held && e.list.RenewNow && h.ownErr == nil { // a failed renewal waits for its retry
		h.due = now
	}
	h.watchErr, h.dirty = nil, true
	h.list, h.listed = e.list.Leases, true
	h.state.Revision, h.state.Connected = e.list.Revision, true
	h.mergePeers()
	if kept := h.withoutSelf(h.peers.leases()); lost && len(kept) > 0 {
		h.m.options.Log.Warn("store lost leases of peers, keeping them",
			"peers", summary(kept), "grace", h.m.options.PeerGrace,
			"revision", e.list.Revision, "previousRevision", before)
	}
}

// mergePeers sets state.All to the store's leases plus the grace peers.
func (h *holder) mergePeers() {
	all, displaced := h.peers.merge(h.list)
	h.state.All = all
	if gone := h.withoutSelf(displaced); len(gone) > 0 {
		h.m.options.Log.Warn("dropping kept peers: their subnets were claimed by other nodes",
			"peers", summary(gone))
	}
}

// expirePeers drops peers whose grace period has ended.
func (h *holder) expirePeers(now time.Time) {
	expired := h.peers.expire(now)
	if len(expired) == 0 {
		return
	}
	h.mergePeers()
	h.dirty = true
	if gone := h.withoutSelf(expired); len(gone) > 0 {
		h.m.options.Log.Warn("dropping kept peers: they did not claim again",
			"peers", summary(gone), "grace", h.m.options.PeerGrace)
	}
}

// withoutSelf removes this node's lease from leases, which it modifies.
func (h *holder) withoutSelf(leases []Lease) []Lease {
	return slices.DeleteFunc(leases, h.state.Self.SameSubnets)
}

// summary lists up to 10 leases for the log and counts the rest.
func summary(leases []Lease) string {
	const most = 10
	var names []string
	for _, l := range leases[:min(len(leases), most)] {
		names = append(names, fmt.Sprintf("%s of %s", subnetsText(l), l.Public()))
	}
	if more := len(leases) - most; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// subnetsText formats the valid subnets of l.
func subnetsText(l Lease) string {
	switch {
	case !l.Subnet6.IsValid():
		return l.Subnet.String()
	case !l.Subnet.IsValid():
		return l.Subnet6.String()
	}
	return l.Subnet.String() + " " + l.Subnet6.String()
}

// dataLost reports whether the list shows that the store lost data.
func (h *holder) dataLost(list Snapshot, now time.Time) bool {
	own, _ := statusIn(list.Leases, h.state.Self, h.m.currentRequest().Attrs)
	if own == leaseMissing && now.Before(h.lagUntil) {
		own = leaseOwn // the list may be older than the claim
	}
	return storeLostData(h.state, list.Revision, own, now)
}

// checkOwn releases the lease if the last list lacks it or assigns it to another node. It ignores a
// list that is not kept up to date.
func (h *holder) checkOwn(now time.Time) {
	if !h.held || !h.state.Connected || now.Before(h.lagUntil) {
		return
	}
	switch status, by := statusIn(h.list, h.state.Self, h.m.currentRequest().Attrs); status {
	case leaseMissing:
		h.release("missing from the store")
	case leaseTaken:
		h.release("held by " + by.Public().String() + " in the store")
	}
}
