package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Marked describes packets that can be recognised on every node.
type Marked struct {
	Src, Dst netip.Addr
	Node     string   // that has Dst
	Marks    [][]byte // a packet or its answer holds one of them
	Lengths  []int    // of the packets and the answers, in bytes
}

// WatchFunc makes this node and the one of the packets look for them. done ends that, and returns
// where each saw them, this node first.
type WatchFunc func(ctx context.Context, m Marked) (done func() []Watched)

// Watched is what a node saw of marked packets.
type Watched struct {
	Node  string `json:"node"`
	Error string `json:"error,omitempty"` // why it could not look
	Seen  []Seen `json:"seen"`
	// Unwatched lists places that it cannot look at, with the reasons.
	Unwatched []string `json:"unwatched,omitempty"`
}

// Seen is a place where packets were seen.
type Seen struct {
	Place    string `json:"place"` // bridge, engine, overlay or underlay
	Device   string `json:"device,omitempty"`
	Outbound bool   `json:"outbound"`
	Packets  int    `json:"packets"`
	Drop     string `json:"drop,omitempty"` // the daemon's reason for dropping them
}

// String describes the place.
func (s Seen) String() string {
	where := s.Device
	if where == "" {
		where = "worker"
	}
	direction := "in"
	if s.Outbound {
		direction = "out"
	}
	text := fmt.Sprintf("%s %s %d", where, direction, s.Packets)
	if s.Drop != "" {
		text += " dropped as " + s.Drop
	}
	return text
}

// String lists the places.
func (w Watched) String() string {
	if w.Error != "" {
		return w.Node + " could not look: " + w.Error
	}
	var places []string
	for _, s := range w.Seen {
		places = append(places, s.String())
	}
	if len(places) == 0 {
		places = []string{"nothing"}
	}
	return w.Node + ": " + strings.Join(append(places, w.Unwatched...), ", ")
}

// stage is a place on the way of a packet to the other node and of its answer back.
type stage struct {
	far      bool // on the other node
	places   []string
	outbound bool
}

// stages are the places in the order of the way. A place may be passed unseen: packets of the fast
// path are seen on the underlay only, and encrypted ones are not seen there.
var stages = []stage{
	{false, []string{"engine", "overlay"}, true},
	{false, []string{"underlay"}, true},
	{true, []string{"underlay"}, false},
	{true, []string{"engine", "overlay"}, false},
	{true, []string{"bridge"}, true},
	{true, []string{"bridge"}, false},
	{true, []string{"engine", "overlay"}, true},
	{true, []string{"underlay"}, true},
	{false, []string{"underlay"}, false},
	{false, []string{"engine", "overlay"}, false},
}

// Indices of stages.
const (
	notSeen      = -1
	nearOverlay  = 0
	nearUnderlay = 1
	farUnderlay  = 2
	farOverlay   = 3
	farDelivered = 4
	farAnswered  = 5
	farSent      = 7
)

// lastStage returns the last place on the way at which a packet was seen, and the reason for a drop
// there.
func lastStage(near, far Watched) (last int, drop string) {
	last = notSeen
	for i, stage := range stages {
		node := near
		if stage.far {
			node = far
		}
		for _, s := range node.Seen {
			if s.Outbound == stage.outbound && slices.Contains(stage.places, s.Place) {
				if last != i || s.Drop != "" {
					drop = s.Drop
				}
				last = i
			}
		}
	}
	return last, drop
}

// seenStep tells where packets without an answer ended, by what the two nodes saw.
func (w *way) seenStep() Step {
	near, far := w.sent.watched[0], Watched{}
	if len(w.sent.watched) > 1 {
		far = w.sent.watched[1]
	}
	evidence := "no answer; seen on " + near.String()
	if far.Node != "" {
		evidence += "; on " + far.String()
	}
	last, drop := lastStage(near, far)
	s := Step{Name: "probe", Outcome: Fails, Evidence: evidence}
	switch {
	case near.Error != "":
		s.Outcome = Unknown
		return s
	case drop != "":
		s.Remedy = "docs/metrics.md explains the reason " + drop
		return s
	}
	s.Outcome, s.Remedy = w.ending(last, near, far)
	return s
}

// ending describes the end of the way after a stage.
func (w *way) ending(last int, near, far Watched) (o Outcome, text string) {
	peer, back := far.Node, fmt.Sprintf("weft trace %s %s", w.flow.Dst, w.flow.Src)
	switch last {
	case notSeen:
		return Fails, "they do not reach the overlay: a route or a packet filter of this host takes them"
	case nearOverlay:
		if len(near.Unwatched) == 0 {
			return Fails, "they enter the overlay, but are not sent to the other node: " +
				"weft doctor; iptables -S OUTPUT, nft list ruleset"
		}
		return Fails, "lost between the nodes, or by a packet filter of one of them: weft doctor on both"
	case nearUnderlay:
		if far.Error != "" || far.Node == "" {
			return Unknown, "sent to the other node; what becomes of them there is not known"
		}
		return Fails, "lost between the nodes: a firewall or security group drops the tunnel's packets, " +
			"or the address of " + peer + " is not its own"
	case farUnderlay:
		return Fails, "they arrive at " + peer + ", which does not take them: a packet filter (INPUT) there, " +
			"or its daemon does not run. On " + peer + ": weft doctor"
	case farOverlay:
		if w.node != nil && w.flow.Dst == w.node.Target {
			return Fails, "they arrive, but " + peer + " does not answer: a packet filter there"
		}
		return Fails, "they leave the overlay on " + peer + ", but not for the pod: forwarding, a route or a " +
			"packet filter there, or no such pod. On " + peer + ": " + w.command()
	case farDelivered:
		return Passes, "they are delivered to the pod, which does not answer: no program, or a filter in the pod"
	}
	if last >= farAnswered && last < farSent {
		return Fails, "answered, but the answer does not leave " + peer + ". There: " + back
	}
	if last == farSent {
		return Fails, "answered, but the answer is lost on its way back: a firewall between the nodes " +
			"that drops one direction"
	}
	return Fails, "the answer arrives, but a packet filter of this host drops it: " +
		"iptables -S INPUT, nft list ruleset"
}

// command returns the command that traces the flow on the other node.
func (w *way) command() string {
	return strings.TrimSpace(fmt.Sprintf("weft trace %s %s %s", w.flow.Src, w.flow.Dst, w.flow.protocolText()))
}

// protocolText returns the protocol as ParseFlow takes it.
func (f Flow) protocolText() string {
	name := map[uint8]string{protocolTCP: "tcp", protocolUDP: "udp"}[f.Protocol]
	if name != "" && f.Port != 0 {
		return fmt.Sprintf("%s/%d", name, f.Port)
	}
	return name
}
