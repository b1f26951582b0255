package cli

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"weft/cmd/control"
	"weft/ctrl/doctor"
)

// lateSightings is how long nodes look for packets after the last one was sent or answered.
const lateSightings = 300 * time.Millisecond

// watch makes this node and the one of the packets look for them. port is that of the health
// servers, or 0 for that of this node.
func (a *asking) watch(port uint16) doctor.WatchFunc {
	return func(ctx context.Context, m doctor.Marked) func() []doctor.Watched {
		w := control.Watch{IPv6: m.Dst.Is6(), Marks: m.Marks, Lengths: m.Lengths}
		status, err := a.client().Status(ctx)
		if err != nil { // no daemon: nothing to look with
			return func() []doctor.Watched { return nil }
		}
		near, err := a.client().Watch(ctx, w)
		all := []watchedNode{{status.Node, near, err}}
		if i := slices.IndexFunc(status.Nodes, func(n control.Node) bool { return n.Name == m.Node }); i >= 0 {
			n := status.Nodes[i]
			far, err := watchPeer(ctx, status, n, port, w)
			all = append(all, watchedNode{n.DisplayName(), far, err})
		}
		return func() []doctor.Watched { return sightings(ctx, all) }
	}
}

// watchPeer makes another node look for packets.
func watchPeer(
	ctx context.Context, self control.Status, n control.Node, port uint16, w control.Watch,
) (*control.WatchReader, error) {
	if port == 0 {
		var err error
		if port, err = healthPort(self); err != nil {
			return nil, errors.New("the daemons have no --healthz-port to ask")
		}
	}
	r, err := control.WatchPeer(ctx, n, port, w)
	switch {
	case errors.Is(err, control.ErrNotServed):
		err = errors.New("it runs flannel, or an older Weft")
	case errors.Is(err, control.ErrNotPermitted):
		err = errors.New("its --metrics is local or off, or it does not know this node's address")
	}
	return r, err
}

// watchedNode is a node that looks for packets.
type watchedNode struct {
	name   string
	reader *control.WatchReader
	err    error // why it does not
}

// sightings waits for late packets and returns what the nodes saw.
func sightings(ctx context.Context, nodes []watchedNode) []doctor.Watched {
	ctx, cancel := context.WithTimeout(ctx, lateSightings)
	defer cancel()
	all := make([]doctor.Watched, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		all[i].Node = n.name
		if n.err != nil {
			all[i].Error = n.err.Error()
			continue
		}
		wg.Go(func() {
			s := n.reader.Last(ctx)
			all[i].Unwatched = s.Unwatched
			for _, seen := range s.Seen {
				all[i].Seen = append(all[i].Seen, doctor.Seen{Place: string(seen.Place), Device: seen.Device,
					Outbound: seen.Outbound, Packets: seen.Packets, Drop: seen.Drop})
			}
		})
	}
	wg.Wait()
	return all
}
