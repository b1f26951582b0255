package dataplane

import (
	"net/netip"
	"sync/atomic"
	"time"

	"weft/dataplane/fastpath"
	"weft/dataplane/tun"
)

// Traffic counts inner packets and their bytes.
type Traffic struct {
	Packets, Bytes uint64
}

// NodeTraffic is the traffic with one node. It starts at zero when the node first appears and is
// discarded when the node leaves, so there are never more of them than nodes.
type NodeTraffic struct {
	Name           string
	Sent, Received Traffic
	// FastSent and FastReceived are the parts of Sent and Received that the fast path carried.
	FastSent, FastReceived Traffic
	// SendError is why the kernel refused the last of the packets to the node that it refused, and
	// SendErrorAt is when; nil if it has refused none.
	SendError   error
	SendErrorAt time.Time
}

// Stats is a copy of all counters. Except for Nodes they only grow during the life of the Engine.
type Stats struct {
	Sent     Traffic // from the TUN to other nodes, accepted by the kernel
	Received Traffic // from other nodes to the TUN, accepted by the kernel
	Drops    map[Drop]uint64
	// LastDrops has, for each reason, the last dropped packet whose header can be read.
	LastDrops map[Drop]LastDrop

	// Sent.Packets per FramesRead, and Received.Packets per FramesWritten or MessagesReceived, are
	// the packets per system call. A ratio near 1 under load means that an offload does not work.
	FramesRead       uint64 // from the TUN
	FramesWritten    uint64 // to the TUN
	MessagesReceived uint64 // from the sockets: trains and single datagrams

	ICMPSent          uint64 // errors sent to inner senders
	ICMPSuppressed    uint64 // errors not sent because of the rate limit
	GSOFramesRejected uint64 // by the TUN, and written as single packets instead
	SocketOverflows   uint64 // messages that the kernel dropped at full receive buffers
	TUNOverflows      uint64 // packets that the kernel dropped at full TUN queues
	DeviceRecreations uint64
	SocketRecreations uint64 // after a loss, or to change the address
	Nodes             []NodeTraffic
	FastPath          FastPathStats
}

// counters belong to one worker. Only the worker adds to them; any goroutine may read them. The
// padding keeps them on cache lines of their own, so that workers do not slow each other down.
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

// Stats returns all counters. A kernel counter that cannot be read, because the device is deleted
// or being recreated, keeps its last value.
func (e *Engine) Stats() Stats {
	s := Stats{Drops: make(map[Drop]uint64, numDrops), LastDrops: make(map[Drop]LastDrop)}
	for _, w := range e.workers {
		w.counters.addTo(&s)
		w.last.addTo(s.LastDrops)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readOverflows()
	e.addNodes(&s, e.addFastStats(&s))
	s.DeviceRecreations, s.SocketRecreations = e.deviceRecreations, e.socketRecreations
	s.TUNOverflows = e.pastTUNDrops + e.tunDrops
	s.SocketOverflows = e.pastOverflows
	for _, n := range e.overflows {
		s.SocketOverflows += n
	}
	return s
}

// addNodes adds the traffic with each node. fast are the counts of the fast path by outer address;
// those of an address belong to the first node that has it. The caller holds e.mu.
func (e *Engine) addNodes(s *Stats, fast map[netip.Addr]fastpath.Traffic) {
	peers := e.nodes.list
	s.Nodes = make([]NodeTraffic, len(peers))
	for i, p := range peers {
		n := &s.Nodes[i]
		n.Name = p.name
		n.Sent = Traffic{p.dest.Packets.Load(), p.dest.Bytes.Load()}
		n.Received = Traffic{p.received.Load(), p.receivedBytes.Load()}
		n.SendErrorAt, n.SendError = p.dest.LastError()
		t := *p.fast
		if len(fast) > 0 {
			a := p.dest.Addr.Addr()
			t.Add(fast[a])
			delete(fast, a)
		}
		n.FastSent = Traffic{t.Sent, t.SentBytes}
		n.FastReceived = Traffic{t.Received, t.ReceivedBytes}
		n.Sent.add(n.FastSent)
		n.Received.add(n.FastReceived)
	}
}

// readOverflows reads the kernel's counters of the device and the sockets in use. The caller holds
// e.mu.
func (e *Engine) readOverflows() {
	if e.closed {
		return
	}
	if drops, err := tun.Dropped(e.device); err == nil {
		if drops < e.tunDrops {
			e.pastTUNDrops += e.tunDrops // a new device with the same name, counting from zero
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
