package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/dataplane/capture"
	"weft/dataplane/udp"
)

// maxCaptures limits the captures at a time, and so the memory and the time that they take.
const maxCaptures = 4

// taps are the captures that see the packets of the workers. A set is immutable; without captures
// there is none, and all that a worker does is to load the pointer once per round.
type taps struct {
	sessions []*capture.Session
	local    netip.AddrPort // outer address of this node
}

// Capture starts a capture of the packets of all workers. The caller passes the session's Run a
// sink, and calls stop at the end.
func (e *Engine) Capture(o capture.Options) (s *capture.Session, stop func(), err error) {
	s, err = capture.NewSession(len(e.workers), o)
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var sessions []*capture.Session
	if current := e.taps.Load(); current != nil {
		sessions = current.sessions
	}
	if len(sessions) >= maxCaptures {
		return nil, nil, fmt.Errorf("capture: %d captures are running, no more are allowed",
			len(sessions))
	}
	if err := e.setTaps(append(slices.Clone(sessions), s)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("capture: %w", err), e.setTaps(sessions))
	}
	return s, func() { e.stopCapture(s) }, nil
}

func (e *Engine) stopCapture(s *capture.Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	current := e.taps.Load()
	if current == nil {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(current.sessions), func(other *capture.Session) bool {
		return other == s
	})
	if err := e.setTaps(rest); err != nil {
		e.log.Warn("fast path stays paused after a capture", "err", err)
	}
}

// wantAll reports whether a session is to see every packet, also those that the fast path takes
// otherwise. t may be nil.
func (t *taps) wantAll() bool {
	return t != nil && slices.ContainsFunc(t.sessions, func(s *capture.Session) bool {
		return !s.Partial()
	})
}

// setTaps publishes a new set, and pauses or resumes the fast path. The caller holds e.mu.
func (e *Engine) setTaps(sessions []*capture.Session) error {
	var next *taps
	if len(sessions) > 0 {
		next = &taps{sessions: sessions, local: e.bound}
	}
	if e.taps.Swap(next).wantAll() == next.wantAll() || e.fast.path == nil || !e.fast.nodes {
		return nil
	}
	return e.setFastNodes()
}

// tapOut shows the captures a packet from the TUN: forwarded to a node, or dropped. p is nil if the
// packet is dropped before its node is known. A packet that the kernel refuses later is shown a
// second time, with the reason.
func (w *worker) tapOut(p *peer, pkt []byte, d Drop) {
	m := w.tapMeta(p, d)
	m.Outbound = true
	for _, s := range w.taps.sessions {
		ring := s.Ring(w.id)
		ring.Packet(&m, pkt)
		if p != nil {
			ring.Datagram(&m, w.outerSource(), p.dest.Addr, pkt)
		}
	}
}

// tapIn shows the captures a datagram from another node, or from an unknown sender, in which case p
// is nil.
func (w *worker) tapIn(p *peer, from netip.AddrPort, pkt []byte, d Drop) {
	m := w.tapMeta(p, d)
	m.Outer = from.Addr()
	for _, s := range w.taps.sessions {
		ring := s.Ring(w.id)
		ring.Packet(&m, pkt)
		ring.Datagram(&m, from, w.taps.local, pkt)
	}
}

// tapTUN shows the captures an inner packet or GSO frame that the TUN refused, or an ICMP error of
// this node.
func (w *worker) tapTUN(pkt []byte, d Drop) {
	m := w.tapMeta(nil, d)
	for _, s := range w.taps.sessions {
		s.Ring(w.id).Packet(&m, pkt)
	}
}

// tapTrain shows the captures all datagrams of a message that is dropped as a whole.
func (w *worker) tapTrain(p *peer, m *udp.Message, d Drop) {
	if w.taps == nil {
		return
	}
	for pkt := range m.All() {
		w.tapIn(p, m.From, pkt, d)
	}
}

func (w *worker) tapMeta(p *peer, d Drop) capture.Meta {
	m := capture.Meta{Time: w.now(), Worker: w.id}
	if p != nil {
		m.Node, m.Outer = p.name, p.dest.Addr.Addr()
	}
	if d != dropNone {
		m.Drop = d.String()
	}
	return m
}

// outerSource returns the address and port that the worker sends from.
func (w *worker) outerSource() netip.AddrPort {
	local := w.taps.local
	if first := w.engine.config.SourcePort; first != 0 {
		return netip.AddrPortFrom(local.Addr(), first+uint16(w.id))
	}
	return local
}

// dropOut drops a packet from the TUN. p is nil if its node is unknown.
func (w *worker) dropOut(d Drop, p *peer, pkt []byte) {
	w.drop(d, pkt)
	if w.taps != nil {
		w.tapOut(p, pkt, d)
	}
}

// dropRefused drops a datagram that the kernel refused to send.
func (w *worker) dropRefused(to *udp.Destination, pkt []byte) {
	w.drop(DropSendError, pkt)
	if w.taps == nil {
		return
	}
	p, _ := w.snapshot.table.ByEndpoint(to.Addr.Addr().Unmap())
	w.tapOut(p, pkt, DropSendError)
}
