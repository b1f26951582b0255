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
	// settle is how old a list may be that arrives after our own write: until then it is not held against us that
	// the list does not show what we wrote.
	settle = 2 * time.Second
	// clockCheck is how often the wall clock is read while waiting for it: a timer knows nothing of it, and stands
	// still while the machine sleeps.
	clockCheck = time.Minute
)

// holder is the state of one Run. Only Run's goroutine touches it.
type holder struct {
	m      *Manager
	report func(State)

	state   State
	dirty   bool // state is to be reported
	claimed bool // a claim has succeeded once: state.Self is ours or was
	held    bool // state.Self is ours by the store's last word
	listed  bool // a list has come

	list     []Lease // the store's last list, without the kept peers
	peers    roster
	due      time.Time // when to claim (not held; zero: now) or to renew (held; zero: never)
	settled  time.Time // until when list may be older than our last write
	retry    backoff
	ownErr   error // why the last claim or renewal failed
	watchErr error // why the last watch ended
	logged   string
}

func newHolder(m *Manager, report func(State)) *holder {
	return &holder{m: m, report: report, peers: roster{grace: m.options.PeerGrace}}
}

// step does what is due, and reports if anything has changed.
func (h *holder) step(ctx context.Context) {
	now := time.Now()
	h.judge(now)
	h.dropPeers(now)
	if h.held && h.isDue(now) {
		h.renew(ctx)
	}
	if !h.held && h.isDue(now) {
		h.claim(ctx)
	}
	news := h.dirty && (h.listed || h.ownErr != nil || h.watchErr != nil)
	if !news || ctx.Err() != nil {
		return
	}
	h.dirty = false
	h.state.Held = h.held && h.listed
	h.state.Err = h.ownErr
	if h.ownErr == nil {
		h.state.Err = h.watchErr
	}
	h.tell()
	h.report(h.state)
}

// tell logs trouble once for as long as it stays the same, and its end.
func (h *holder) tell() {
	text := ""
	if h.state.Err != nil {
		text = h.state.Err.Error()
	}
	switch {
	case text == h.logged:
	case text != "":
		h.m.options.Log.Warn("trouble with the lease store, trying on", "err", h.state.Err, "held", h.state.Held)
	case h.listed:
		h.m.options.Log.Info("the lease store is fine again", "leases", len(h.state.All), "revision", h.state.Revision)
	}
	h.logged = text
}

// pause is how long Run may wait for an event before the next step.
func (h *holder) pause(now time.Time) time.Duration {
	d := clockCheck
	for _, t := range []time.Time{h.due, h.settled, h.peers.until()} {
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

// claim asks for a lease: the subnet that we had before is the first choice.
func (h *holder) claim(ctx context.Context) {
	r := h.m.wanted()
	if h.claimed {
		r.Previous, r.Previous6 = h.state.Self.Subnet, h.state.Self.Subnet6
	}
	l, err := h.m.store.Claim(ctx, r)
	if !h.done(err) {
		return
	}
	log := h.m.options.Log.Info
	if h.claimed && !l.SameSubnets(h.state.Self) {
		log = h.m.options.Log.Error // pods of this node keep addresses that are no longer its
		h.peers.forget(h.state.Self)
	}
	log("lease claimed", "subnet", l.Subnet, "subnet6", l.Subnet6, "publicIP", l.Public(), expiry(l),
		"before", r.Previous, "before6", r.Previous6)
	h.held, h.claimed = true, true
	h.keep(l)
}

// renew extends the lease and publishes the attributes that are wanted now.
func (h *holder) renew(ctx context.Context) {
	l := h.state.Self
	l.Attrs = h.m.wanted().Attrs
	l, err := h.m.store.Renew(ctx, l)
	if errors.Is(err, ErrLost) {
		h.lose(err.Error())
		return
	}
	if h.done(err) {
		h.m.options.Log.Info("lease renewed", "subnet", l.Subnet, "subnet6", l.Subnet6, "publicIP", l.Public(), expiry(l))
		h.keep(l)
	}
}

// expiry is when the lease expires, for the log: nothing where that is never or not known.
func expiry(l Lease) slog.Attr {
	if l.Expires.IsZero() {
		return slog.Attr{}
	}
	return slog.Time("expires", l.Expires)
}

// done notes how a claim or a renewal went, and plans the next try if it failed.
func (h *holder) done(err error) bool {
	if err != nil {
		h.due = time.Now().Add(h.retry.next())
		h.dirty = h.dirty || !sameTrouble(h.ownErr, err)
		h.ownErr = err
		return false
	}
	h.retry, h.ownErr, h.dirty = backoff{}, nil, true
	return true
}

// sameTrouble reports whether an error says no more than the one before, which may be nil.
func sameTrouble(before, err error) bool { return before != nil && before.Error() == err.Error() }

// keep takes over a lease that was just written.
func (h *holder) keep(l Lease) {
	now := time.Now()
	l.Expires = l.Expires.Round(0)
	h.state.Self = l
	h.due = renewAt(l, now, h.m.options.RenewMargin)
	h.settled = now.Add(settle)
}

// lose lets go of the lease and makes a claim due, in this very step: a lease that is back at once was never reported
// as lost.
func (h *holder) lose(why string) {
	h.m.options.Log.Warn("lease lost, claiming again", "subnet", h.state.Self.Subnet, "subnet6", h.state.Self.Subnet6, "why", why)
	h.held, h.due, h.dirty = false, time.Time{}, true
}

// attrsChanged makes a renewal due if the lease says something else.
func (h *holder) attrsChanged() {
	if h.held && !h.state.Self.Attrs.Equal(h.m.wanted().Attrs) {
		h.due = time.Now()
	}
}

// take takes over what the watch tells.
func (h *holder) take(e event, now time.Time) {
	if e.err != nil {
		h.dirty = h.dirty || !sameTrouble(h.watchErr, e.err)
		h.watchErr, h.state.Connected = e.err, false
		if h.held && (errors.Is(e.err, ErrInUse) || errors.Is(e.err, ErrLost)) {
			h.lose(e.err.Error())
		}
		return
	}
	before, lost := h.state.Revision, h.listed && h.lostData(e.list, now)
	if lost {
		if h.held {
			h.due = now // what the store knows of our expiry is not what we know
		}
		h.peers.keep(h.state.All, now)
	}
	if h.held && e.list.RenewNow && h.ownErr == nil { // a renewal that failed waits out its pause
		h.due = now
	}
	h.watchErr, h.dirty = nil, true
	h.list, h.listed = e.list.Leases, true
	h.state.Revision, h.state.Connected = e.list.Revision, true
	h.mergePeers()
	if kept := h.peersAmong(h.peers.leases()); lost && len(kept) > 0 {
		h.m.options.Log.Warn("the store lost leases of peers: they are kept until they or others claim the subnets",
			"peers", summary(kept), "atMost", h.m.options.PeerGrace, "revision", e.list.Revision, "before", before)
	}
}

// mergePeers makes the state's list of the store's and of what is kept.
func (h *holder) mergePeers() {
	all, displaced := h.peers.merge(h.list)
	h.state.All = all
	if gone := h.peersAmong(displaced); len(gone) > 0 {
		h.m.options.Log.Warn("dropping peers that the store had lost: other nodes have their subnets now", "peers", summary(gone))
	}
}

// dropPeers lets the peers go that were kept for long enough.
func (h *holder) dropPeers(now time.Time) {
	over := h.peers.expire(now)
	if len(over) == 0 {
		return
	}
	h.mergePeers()
	h.dirty = true
	if gone := h.peersAmong(over); len(gone) > 0 {
		h.m.options.Log.Warn("dropping peers that the store had lost: they have not claimed again",
			"peers", summary(gone), "after", h.m.options.PeerGrace)
	}
}

// peersAmong leaves our own lease out.
func (h *holder) peersAmong(leases []Lease) []Lease {
	return slices.DeleteFunc(leases, h.state.Self.SameSubnets)
}

// summary names leases for the log: all of a few, some of many.
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

// subnetsText is what a lease is about.
func subnetsText(l Lease) string {
	switch {
	case !l.Subnet6.IsValid():
		return l.Subnet.String()
	case !l.Subnet.IsValid():
		return l.Subnet6.String()
	}
	return l.Subnet.String() + " " + l.Subnet6.String()
}

// lostData reports whether the list does not continue the ones before it.
func (h *holder) lostData(list Snapshot, now time.Time) bool {
	own, _ := fateOf(h.state.Self, h.m.wanted().Attrs, list.Leases)
	if own == missing && now.Before(h.settled) {
		own = ours // the list may be older than our claim
	}
	return wiped(h.state, list.Revision, own, now)
}

// judge looks for our lease in the last list. A list that is not kept up to date says nothing.
func (h *holder) judge(now time.Time) {
	if !h.held || !h.state.Connected || now.Before(h.settled) {
		return
	}
	switch fate, by := fateOf(h.state.Self, h.m.wanted().Attrs, h.list); fate {
	case missing:
		h.lose("it is gone from the store")
	case taken:
		h.lose("the store says that it belongs to " + by.Public().String())
	}
}
