package dataplane

import (
	"net/netip"

	"weft/dataplane/fastpath"
	"weft/dataplane/fib"
)

// nodes are the other nodes of the overlay, from which snapshots are made.
type nodes struct {
	builder fib.Builder[*peer]
	peers   map[peerID]*listedPeer
	list    []*peer // of peers, in any order
}

// peerID identifies a peer. Leases of one node have the same name and usually the same endpoint.
type peerID struct {
	name     string
	endpoint netip.AddrPort
}

// listedPeer is a peer with its position in the list and the number of its entries in the table.
type listedPeer struct {
	*peer
	at, entries int
}

// SetNodes sets the subnets of this node and all other nodes of the overlay. It takes effect with
// each worker's next round. The counters of a node that keeps its name are kept, and with them its
// cached path MTU if it also keeps its endpoint.
func (e *Engine) SetNodes(local fib.Node, others []fib.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	known := make(map[string]*peer, len(e.nodes.list))
	for _, p := range e.nodes.list {
		known[p.name] = p
	}
	e.nodes = nodes{}
	before := e.snapshot.Load()
	e.store(local, e.nodes.change(nil, others, known).Table)
	if !e.fast.nodes {
		close(e.nodesKnown)
	}
	e.fast.local, e.fast.nodes = local, true
	e.updateFastNodes(before, e.replaceFastNodes)
}

// ChangeNodes removes nodes of the overlay and then adds others, with work in proportion to their
// number; otherwise it is like SetNodes, which must have been called before. A removed node is
// identified by its prefixes, name and endpoint.
func (e *Engine) ChangeNodes(remove, add []fib.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.nodes.change(remove, add, map[string]*peer{})
	before := e.snapshot.Load()
	e.store(e.fast.local, r.Table)
	e.updateFastNodes(before, func() (map[netip.Addr]fastpath.Traffic, error) {
		return e.fast.path.ChangeNodes(r.Inner, r.Outer)
	})
}

// store makes the snapshot that the workers use from now on. The caller holds e.mu.
func (e *Engine) store(local fib.Node, table *fib.Table[*peer]) {
	s := &snapshot{table: table}
	for _, prefix := range local.Prefixes {
		s.local = append(s.local, prefix.Masked())
	}
	e.snapshot.Store(s)
}

// change removes and adds nodes. known holds peers by name whose state is kept; it adds the removed
// ones.
func (n *nodes) change(remove, add []fib.Node, known map[string]*peer) fib.Result[*peer] {
	if n.peers == nil {
		n.peers = make(map[peerID]*listedPeer, len(add))
	}
	for _, r := range remove {
		if p := n.release(r); p != nil {
			known[r.Name] = p
		}
	}
	entries := make([]fib.Entry[*peer], 0, len(add))
	for _, a := range add {
		entries = append(entries, fib.Entry[*peer]{Node: a, Value: n.acquire(a, known[a.Name])})
	}
	return n.builder.Change(remove, entries)
}

// release drops one entry of a node's peer, and the peer with its last entry.
func (n *nodes) release(node fib.Node) *peer {
	id := peerID{node.Name, node.Endpoint}
	p := n.peers[id]
	if p == nil {
		return nil
	}
	if p.entries--; p.entries > 0 {
		return p.peer
	}
	delete(n.peers, id)
	last := n.list[len(n.list)-1]
	n.list[p.at] = last
	n.peers[peerID{last.name, last.dest.Addr}].move(p.at)
	n.list[len(n.list)-1] = nil
	n.list = n.list[:len(n.list)-1]
	return p.peer
}

// move sets the position in the list. A peer that has just been released has none.
func (p *listedPeer) move(at int) {
	if p != nil {
		p.at = at
	}
}

// acquire returns the peer of a node: its own if it has one, else one with the state of old, which
// may be nil.
func (n *nodes) acquire(node fib.Node, old *peer) *peer {
	id := peerID{node.Name, node.Endpoint}
	p := n.peers[id]
	if p == nil {
		p = &listedPeer{peer: updatePeer(old, node), at: len(n.list)}
		n.peers[id] = p
		n.list = append(n.list, p.peer)
	}
	p.entries++
	return p.peer
}
