package backend

import (
	"hash/maphash"
	"slices"

	"weft/ctrl"
	"weft/lease"
	"weft/lease/ordered"
)

// Planner plans for leases that change a few at a time. Its plan is that of the Backend for all
// leases, composed of the plans for single leases: it computes only those of changed leases.
//
// The leases of nodes that want the same object in the kernel (two machines with the same Ethernet
// address) are planned together, as only the backend knows which of them has it. A Planner is not
// safe for concurrent use.
type Planner struct {
	backend Backend
	self    lease.Lease
	base    ctrl.State // without other nodes
	own     map[ctrl.Object]bool
	leases  lease.Set // planned
	parts   ordered.Set[*ctrl.Part]
	// owners holds the leases that want an object, by a hash of the object's key: usually one.
	owners map[uint64][]*lease.Lease
	seed   maphash.Seed
}

// NewPlanner returns a Planner for a node with the lease self. After a change of either, another
// Planner is needed.
func NewPlanner(b Backend, self lease.Lease) *Planner {
	p := &Planner{
		backend: b, self: self, base: b.Plan(self, nil), own: map[ctrl.Object]bool{},
		owners: map[uint64][]*lease.Lease{}, seed: maphash.MakeSeed(),
	}
	for o := range p.base.Objects() {
		p.own[o] = true
	}
	return p
}

// Serves reports whether the planner can be used for a node with the lease self.
func (p *Planner) Serves(self lease.Lease) bool { return p.self.Equal(self) }

// Plan returns the plan for all leases, which may include self. Parts has one part per lease of
// another node.
func (p *Planner) Plan(all lease.Set) ctrl.Plan {
	changes := lease.Changes(p.leases, all)
	p.leases = all
	var remove, put []*ctrl.Part
	affected := map[*lease.Lease]bool{} // leases to plan
	var released []uint64
	for _, c := range changes {
		if c.Before != nil && !c.Before.Overlaps(p.self) {
			remove = append(remove, partOf(c.Before))
			released = append(released, p.release(c.Before)...)
		}
	}
	for _, k := range released {
		p.affect(affected, k)
	}
	alone := make(map[*lease.Lease]planned, len(changes))
	for _, c := range changes {
		if c.After != nil && !c.After.Overlaps(p.self) {
			affected[c.After] = true
			alone[c.After] = p.acquire(c.After, affected)
		}
	}
	for _, group := range p.groups(affected, alone) {
		if len(group) == 1 {
			put = append(put, alone[group[0]].part)
			continue
		}
		put = append(put, p.planGroup(group)...)
	}
	p.parts = p.parts.With(remove, put)
	return ctrl.Plan{State: p.base, Parts: p.parts}
}

// planned is the plan for one lease alone.
type planned struct {
	part *ctrl.Part
	keys []uint64 // hashes of the keys of the objects
}

func (p *Planner) planAlone(l *lease.Lease) planned {
	part := p.planGroup([]*lease.Lease{l})[0]
	keys := make([]uint64, len(part.Objects))
	for i, o := range part.Objects {
		keys[i] = maphash.Comparable(p.seed, ctrl.KeyOf(o))
	}
	return planned{part, keys}
}

// affect adds the owners of an object to the affected leases.
func (p *Planner) affect(affected map[*lease.Lease]bool, key uint64) {
	for _, l := range p.owners[key] {
		affected[l] = true
	}
}

// acquire makes a lease an owner of its objects. Their other owners are affected.
func (p *Planner) acquire(l *lease.Lease, affected map[*lease.Lease]bool) planned {
	alone := p.planAlone(l)
	for _, k := range alone.keys {
		p.affect(affected, k)
		p.owners[k] = append(p.owners[k], l)
	}
	return alone
}

// release removes a lease from the owners of its objects and returns their keys.
func (p *Planner) release(l *lease.Lease) []uint64 {
	keys := p.planAlone(l).keys
	for _, k := range keys {
		p.owners[k] = slices.DeleteFunc(p.owners[k],
			func(o *lease.Lease) bool { return o.Order(l) == 0 })
		if len(p.owners[k]) == 0 {
			delete(p.owners, k)
		}
	}
	return keys
}

// groups returns the affected leases, each together with all that want the same objects. It adds
// the plans that it needs to alone.
func (p *Planner) groups(
	affected map[*lease.Lease]bool, alone map[*lease.Lease]planned,
) [][]*lease.Lease {
	var groups [][]*lease.Lease
	grouped := make(map[*lease.Lease]bool, len(affected))
	for l := range affected {
		if grouped[l] {
			continue
		}
		grouped[l] = true
		group := []*lease.Lease{l}
		for i := 0; i < len(group); i++ {
			member := group[i]
			if alone[member].part == nil {
				alone[member] = p.planAlone(member)
			}
			for _, k := range alone[member].keys {
				for _, other := range p.owners[k] {
					if !grouped[other] {
						grouped[other] = true
						group = append(group, other)
					}
				}
			}
		}
		slices.SortFunc(group, (*lease.Lease).Order)
		groups = append(groups, group)
	}
	return groups
}

// planGroup plans for leases together. The first part has the objects of all.
func (p *Planner) planGroup(group []*lease.Lease) []*ctrl.Part {
	leases := make([]lease.Lease, len(group))
	parts := make([]*ctrl.Part, len(group))
	for i, l := range group {
		leases[i], parts[i] = *l, partOf(l)
	}
	s := p.backend.Plan(p.self, leases)
	for o := range s.Objects() {
		if !p.own[o] {
			parts[0].Objects = append(parts[0].Objects, o)
		}
	}
	parts[0].FlannelRoutes = s.FlannelRoutes
	for _, u := range s.Unreachable {
		i := slices.IndexFunc(parts, func(part *ctrl.Part) bool {
			return (u.Subnet == part.Subnet || u.Subnet == part.Subnet6) &&
				(u.Node == part.Node || part.Node == "")
		})
		parts[max(i, 0)].Unreachable = append(parts[max(i, 0)].Unreachable, u)
	}
	return parts
}

// partOf returns the empty part of a lease.
func partOf(l *lease.Lease) *ctrl.Part {
	return &ctrl.Part{Subnet: l.Subnet, Subnet6: l.Subnet6, Node: l.Node}
}
