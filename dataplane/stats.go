package dataplane

import (
	"sync/atomic"

	"weft/dataplane/tun"
)

// Traffic counts inner packets and their bytes.
type Traffic struct {
	Packets, Bytes uint64
}

// NodeTraffic is the traffic with one node. It starts at zero when the node first appears and is forgotten when
// the node leaves, so there are never more of them than nodes.
type NodeTraffic struct {
	Name           string
	Sent, Received Traffic
}

// Stats is a snapshot of all counters. Except Nodes they only grow while the Engine lives.
type Stats struct {
	Sent     Traffic // from the TUN to other nodes: what the kernel accepted to send
	Received Traffic // from other nodes to the TUN: what the kernel took
	Drops    map[Drop]uint64

	// How much one call into the kernel moves: Sent.Packets over FramesRead, Received.Packets over the others. A
	// ratio near 1 under load means that an offload is not at work.
	FramesRead       uint64 // from the TUN
	FramesWritten    uint64 // to the TUN
	MessagesReceived uint64 // from the sockets: trains and single datagrams

	ICMPSent          uint64 // errors told to inner senders
	ICMPSuppressed    uint64 // errors not told because of the rate limit
	GSOFramesRejected uint64 // by the TUN, and written as single packets instead
	SocketOverflows   uint64 // messages the kernel dropped at full receive buffers: trains and single datagrams
	TUNOverflows      uint64 // packets the kernel dropped at full TUN queues
	DeviceRecreations uint64 // the TUN device was made again
	SocketRecreations uint64 // the sockets were opened again: lost, or bound to another address
	Nodes             []NodeTraffic
}

// counters are one worker's. Only the worker adds; anybody may read. They fill whole cache lines of their own,
// so that workers do not slow each other down.
type counters struct {
	_              [64]byte
	sent           traffic
	received       traffic
	drops          [numDrops]atomic.Uint64
	framesRead     atomic.Uint64
	framesWritten  atomic.Uint64
	messages       atomic.Uint64
	icmpSent       atomic.Uint64
	icmpSuppressed atomic.Uint64

	gsoFramesRejected atomic.Uint64
	_                 [64]byte
}

type traffic struct {
	packets, bytes atomic.Uint64
}

func (t *traffic) add(packets, bytes int) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
}

func (t *traffic) addTo(sum *Traffic) {
	sum.Packets += t.packets.Load()
	sum.Bytes += t.bytes.Load()
}

func (c *counters) addTo(s *Stats) {
	c.sent.addTo(&s.Sent)
	c.received.addTo(&s.Received)
	for _, d := range Drops() {
		s.Drops[d] += c.drops[d].Load()
	}
	s.FramesRead += c.framesRead.Load()
	s.FramesWritten += c.framesWritten.Load()
	s.MessagesReceived += c.messages.Load()
	s.ICMPSent += c.icmpSent.Load()
	s.ICMPSuppressed += c.icmpSuppressed.Load()
	s.GSOFramesRejected += c.gsoFramesRejected.Load()
}

// Stats returns all counters. One of the kernel's that cannot be read just now, because the device is gone or
// being made again, stays at what it was.
func (e *Engine) Stats() Stats {
	s := Stats{Drops: make(map[Drop]uint64, numDrops)}
	for _, w := range e.workers {
		w.counters.addTo(&s)
	}
	listed := make(map[*peer]bool)
	for _, p := range e.view.Load().peers {
		if listed[p] {
			continue
		}
		listed[p] = true
		s.Nodes = append(s.Nodes, NodeTraffic{
			Name:     p.name,
			Sent:     Traffic{p.to.Packets.Load(), p.to.Bytes.Load()},
			Received: Traffic{p.received.Load(), p.receivedBytes.Load()},
		})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readOverflows()
	s.DeviceRecreations, s.SocketRecreations = e.deviceRecreations, e.socketRecreations
	s.TUNOverflows = e.tunDropsBefore + e.tunDrops
	s.SocketOverflows = e.overflowsBefore
	for _, n := range e.overflows {
		s.SocketOverflows += n
	}
	return s
}

// readOverflows reads the kernel's counters of the device and the sockets in use. e.mu is held.
func (e *Engine) readOverflows() {
	if e.closed {
		return
	}
	if drops, err := tun.Dropped(e.device); err == nil {
		if drops < e.tunDrops {
			e.tunDropsBefore += e.tunDrops // another device of the same name, which counts from zero
		}
		e.tunDrops = drops
	}
	for i, s := range e.sockets {
		if s == nil {
			continue
		}
		if n, err := s.Overflows(); err == nil {
			e.overflows[i] = n
		}
	}
}
