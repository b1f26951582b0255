package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"weft/cmd/control"
	"weft/dataplane"
	"weft/dataplane/refusal"
	"weft/metrics"
)

// hearing holds signs of life of the other nodes: when their packet counters last grew, and ICMP
// errors about packets to them. The counters are sampled, so the packet path does no more for it.
// It is safe for concurrent use.
type hearing struct {
	mu      sync.Mutex
	sampled time.Time
	nodes   int              // number of nodes then
	traffic map[string]heard // by node, of the udp backend; without those that had none
	// blocked is why this host has refused all packets to other nodes since blockedSince; empty if
	// it has not.
	blocked      string
	blockedSince time.Time

	refusals map[netip.Addr]refused
	logged   time.Time // last message about a refusal
}

// heard is the recent traffic with one node.
type heard struct {
	received, sent uint64 // packets, when last sampled
	heardAt        time.Time
	sentAt         time.Time
	sentThen       uint64 // sent, when a packet was last received
}

// refused are the ICMP errors about packets to one address.
type refused struct {
	refusal.Refusal
	last, logged time.Time
}

const (
	// hearingInterval is the precision of the times. A sample costs up to a microsecond per node,
	// so it is longer in large clusters.
	hearingInterval      = time.Second
	hearingIntervalLarge = 10 * time.Second
	largeCluster         = 1000 // nodes

	// blockedWindow is how long a refused packet counts: longer than the pause of the mesh probe
	// between two echoes to a node.
	blockedWindow = 30 * time.Second
	// blockedPatience keeps single refused packets from making the node unready.
	blockedPatience = 3 * time.Second

	// maxRefusals bounds the addresses that are remembered; an error may name any.
	maxRefusals = 1024
	// refusalLogNode and refusalLogAll are the shortest times between two messages about one node
	// and about any.
	refusalLogNode = 5 * time.Minute
	refusalLogAll  = 5 * time.Second
)

// due reports whether a sample is due.
func (h *hearing) due(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	interval := hearingInterval
	if h.nodes > largeCluster {
		interval = hearingIntervalLarge
	}
	return now.Sub(h.sampled) >= interval
}

// sample takes over the engine's counters.
func (h *hearing) sample(nodes []dataplane.NodeTraffic, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sampled, h.nodes = now, len(nodes)
	sent, refused := time.Time{}, dataplane.NodeTraffic{}
	current := make(map[string]heard, len(h.traffic))
	for _, n := range nodes {
		if n.SendErrorAt.After(refused.SendErrorAt) {
			refused = n
		}
		if n.Sent.Packets+n.Received.Packets == 0 {
			continue
		}
		s := h.traffic[n.Name]
		if n.Sent.Packets > s.sent {
			s.sentAt = now
		}
		if n.Received.Packets > s.received {
			s.heardAt, s.sentThen = now, n.Sent.Packets
		}
		s.received, s.sent = n.Received.Packets, n.Sent.Packets
		current[n.Name] = s
		if s.sentAt.After(sent) {
			sent = s.sentAt
		}
	}
	h.traffic = current
	h.judgeSending(sent, refused, now)
}

// judgeSending updates blocked for the time of the last packet sent to any node and the last one
// refused.
func (h *hearing) judgeSending(sent time.Time, refused dataplane.NodeTraffic, now time.Time) {
	if !refused.SendErrorAt.After(sent) || now.Sub(refused.SendErrorAt) > blockedWindow {
		h.blocked, h.blockedSince = "", time.Time{}
		return
	}
	h.blocked = refused.SendError.Error()
	if h.blockedSince.IsZero() {
		h.blockedSince = now
	}
}

// sendingBlocked returns why this host refuses to send to any node; empty if it does not, or only
// for a moment.
func (h *hearing) sendingBlocked(now time.Time) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.blockedSince.IsZero() || now.Sub(h.blockedSince) < blockedPatience {
		return ""
	}
	return h.blocked
}

// refuse records an error and reports whether to log it.
func (h *hearing) refuse(r refusal.Refusal, now time.Time) (log bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, known := h.refusals[r.To]
	if h.refusals == nil || !known && len(h.refusals) >= maxRefusals {
		h.refusals = map[netip.Addr]refused{}
	}
	old.Refusal, old.last = r, now
	if now.Sub(old.logged) >= refusalLogNode && now.Sub(h.logged) >= refusalLogAll {
		old.logged, h.logged, log = now, now, true
	}
	h.refusals[r.To] = old
	return log
}

// describe fills in the signs of life of a node.
func (h *hearing) describe(n *control.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.traffic[n.Name]; ok {
		n.Heard, n.Sent, n.Unanswered = s.heardAt, s.sentAt, s.sent-s.sentThen
	}
	if r, ok := h.refusals[n.Public]; ok && r.last.After(n.Heard) {
		n.Error, n.ErrorAt = refusalText(r.Refusal), r.last
	}
}

func refusalText(r refusal.Refusal) string {
	return fmt.Sprintf("%s, by ICMP from %s", r.Reason, r.From)
}

// listen samples the traffic with the other nodes if that is due.
func (a *agent) listen(now time.Time) {
	if a.engine != nil && a.hearing.due(now) {
		stats := a.engine.Stats()
		a.hearing.sample(stats.Nodes, now)
		a.drops.report(stats, a.log, now)
	}
}

// hearRefusals records ICMP errors about tunnel packets until ctx ends. Without them the daemon
// works, so a failure is only logged.
func (a *agent) hearRefusals(ctx context.Context, port uint16) {
	listeners, err := refusal.Listen(port)
	if err != nil {
		a.log.Warn("refusals of other nodes are not shown", "err", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, l := range listeners {
		wg.Go(func() {
			err := l.Run(ctx, func(r refusal.Refusal) {
				if a.hearing.refuse(r, time.Now()) {
					a.log.Warn("packets to a node are refused", "public", r.To,
						"reason", refusalText(r))
				}
			})
			if err != nil {
				a.log.Warn("refusals of other nodes are no longer shown", "err", err)
			}
		})
	}
}

// describeNodes fills in the signs of life of all nodes of a status.
func (d *daemon) describeNodes(s *control.Status) {
	sendErrors := map[string]metrics.NodeTraffic{}
	if s.Traffic != nil {
		for _, n := range s.Traffic.Nodes {
			if n.SendError != "" {
				sendErrors[n.Node] = n
			}
		}
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		d.hearing.describe(n)
		if e, ok := sendErrors[n.Name]; ok && e.SendErrorAt.After(n.ErrorAt) &&
			e.SendErrorAt.After(n.Heard) {
			n.Error, n.ErrorAt = e.SendError, e.SendErrorAt
		}
	}
}
