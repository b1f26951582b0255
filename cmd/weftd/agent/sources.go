package agent

import (
	"fmt"
	"strings"
	"time"

	"weft/dataplane"
)

const (
	// sourceGrace is how long an unknown source must go on sending to be logged: a new node may
	// send before its lease has arrived here.
	sourceGrace = 5 * time.Second
	// sourceInterval is the shortest time between two messages about unknown sources.
	sourceInterval = 5 * time.Minute
)

// reportUnknownSources logs outer addresses that packets are dropped from because they are not
// nodes.
func (a *agent) reportUnknownSources(now time.Time) {
	if a.engine == nil || now.Sub(a.sourcesLogged) < sourceInterval {
		return
	}
	text := persistentSources(a.engine.UnknownSources(), a.sourcesLogged)
	if text == "" {
		return
	}
	a.sourcesLogged = now
	a.log.Warn("packets dropped from addresses that are not nodes: NAT between nodes, "+
		"a wrong --public-ip or --iface on the sender, or another cluster", "sources", text)
}

// persistentSources describes the sources that have sent since a time, for longer than sourceGrace.
func persistentSources(all []dataplane.UnknownSource, since time.Time) string {
	var texts []string
	for _, s := range all {
		if s.Last.After(since) && s.Last.Sub(s.First) >= sourceGrace {
			texts = append(texts, fmt.Sprintf("%s (%d packets)", s.Addr, s.Packets))
		}
	}
	return strings.Join(texts, ", ")
}
