package ctrl

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"strings"

	"weft/lease/ordered"
)

// Plan is a wanted state in parts. Plans that follow one another share the parts that have not
// changed, so that applying the next one costs as much as the change. A Plan is never modified
// after it has been passed on.
type Plan struct {
	State // of this node itself: devices, addresses, networks
	Parts ordered.Set[*Part]
}

// Part is the wanted state that concerns one other node. No two parts have objects with the same
// key.
type Part struct {
	// Subnet, Subnet6 and Node identify the part; an unset subnet is the zero Prefix.
	Subnet, Subnet6 netip.Prefix
	Node            string

	Objects       []Object
	FlannelRoutes []FlannelRoute
	Unreachable   []Unreachable
}

// Order orders parts by subnet and node, as a lease.Set orders leases.
func (p *Part) Order(o *Part) int {
	if c := ordered.ComparePrefixes(p.Subnet, o.Subnet); c != 0 {
		return c
	}
	if c := ordered.ComparePrefixes(p.Subnet6, o.Subnet6); c != 0 {
		return c
	}
	return strings.Compare(p.Node, o.Node)
}

// Whole returns the plan as one state.
func (p Plan) Whole() State {
	s := p.State.clip()
	for part := range p.Parts.All() {
		s.addPart(part)
	}
	return s
}

// clip returns a state whose slices can be appended to without a change of s.
func (s State) clip() State {
	c := State{
		Networks: s.Networks, FreePorts: s.FreePorts, NoTrack: s.NoTrack, IKE: s.IKE,
		FlannelRoutes: append([]FlannelRoute(nil), s.FlannelRoutes...),
		Unreachable:   append([]Unreachable(nil), s.Unreachable...),
	}
	for o := range s.Objects() {
		c.add(o)
	}
	return c
}

func (s *State) addPart(p *Part) {
	for _, o := range p.Objects {
		s.add(o)
	}
	s.FlannelRoutes = append(s.FlannelRoutes, p.FlannelRoutes...)
	s.Unreachable = append(s.Unreachable, p.Unreachable...)
}

// Objects iterates over all objects of the state.
func (s State) Objects() iter.Seq[Object] {
	return func(yield func(Object) bool) {
		_ = each(s.Links, yield) && each(s.Addrs, yield) && each(s.Routes, yield) &&
			each(s.Neighbours, yield) && each(s.FDB, yield) && each(s.FOU, yield) &&
			each(s.Tunnels, yield) && each(s.Peers, yield) && each(s.Commands, yield) &&
			each(s.Policies, yield) && each(s.Associations, yield)
	}
}

func each[T Object](objects []T, yield func(Object) bool) bool {
	for _, o := range objects {
		if !yield(o) {
			return false
		}
	}
	return true
}

// add adds an object.
func (s *State) add(o Object) {
	switch o := o.(type) {
	case Link:
		s.Links = append(s.Links, o)
	case Addr:
		s.Addrs = append(s.Addrs, o)
	case Route:
		s.Routes = append(s.Routes, o)
	case Neighbour:
		s.Neighbours = append(s.Neighbours, o)
	case FDBEntry:
		s.FDB = append(s.FDB, o)
	case FOUPort:
		s.FOU = append(s.FOU, o)
	case Tunnel:
		s.Tunnels = append(s.Tunnels, o)
	case Peer:
		s.Peers = append(s.Peers, o)
	case Command:
		s.Commands = append(s.Commands, o)
	case Policy:
		s.Policies = append(s.Policies, o)
	case Association:
		s.Associations = append(s.Associations, o)
	}
}

// KeyOf returns the part of an object that identifies it in the kernel: two objects with the same
// key cannot exist together. Keys are comparable, also with those of other types.
func KeyOf(o Object) any {
	switch o := o.(type) {
	case Route:
		return o.key()
	case Neighbour:
		return o.key()
	case FDBEntry:
		return o.key()
	case Peer:
		return o.id()
	case Command:
		return o.ID
	case Policy:
		return o.id()
	case Association:
		return o.ends()
	}
	return o
}

func (n Neighbour) key() Neighbour { return Neighbour{Dev: n.Dev, IP: n.IP} }
func (f FDBEntry) key() FDBEntry   { return FDBEntry{Dev: f.Dev, MAC: f.MAC} }

// fingerprints holds hashes of objects: 10,000 nodes have 30,000 objects with vxlan, and a set of
// the objects themselves would double the memory that they take.
type fingerprints struct {
	seed maphash.Seed
	set  map[uint64]struct{}
}

func newFingerprints() *fingerprints {
	return &fingerprints{seed: maphash.MakeSeed(), set: map[uint64]struct{}{}}
}

func (f *fingerprints) hash(v any) uint64 { return maphash.Comparable(f.seed, v) }

// add adds an object, by its value and by its key.
func (f *fingerprints) add(o Object) {
	f.set[f.hash(o)] = struct{}{}
	f.set[f.hash(KeyOf(o))] = struct{}{}
}

func (f *fingerprints) remove(o Object) {
	delete(f.set, f.hash(o))
	delete(f.set, f.hash(KeyOf(o)))
}

// has reports whether an object with this value was added, or with this key if v is a key.
func (f *fingerprints) has(v any) bool {
	_, ok := f.set[f.hash(v)]
	return ok
}
