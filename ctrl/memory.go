package ctrl

import (
	"context"
	"reflect"

	"weft/lease/ordered"
)

// memory is the reconciler's knowledge of the kernel since it last compared everything. While it is
// valid and no notification contradicts it, the next plan is applied by its difference from the
// last one. Only the goroutine of Run uses it.
type memory struct {
	valid bool
	plan  Plan // in place
	// The following are of the last comparison.
	links   []Link  // of the kernel
	foreign []Route // inside the networks, not owned
}

// serves reports whether the difference of want from the remembered plan can be applied: this
// node's own part must be the same.
func (m *memory) serves(want Plan) bool {
	return m.valid && reflect.DeepEqual(m.plan.State, want.State)
}

// difference returns the states between which a comparison finds the operations that turn the
// remembered plan into want: everything of this node itself, which is equal on both sides, and the
// parts that differ.
func (m *memory) difference(want Plan) (have, wanted State) {
	have, wanted = want.State.clip(), want.State.clip()
	own := map[string]bool{}
	for _, l := range have.Links {
		own[l.Name] = true
	}
	for _, l := range m.links {
		if !own[l.Name] {
			have.Links = append(have.Links, l)
		}
	}
	have.Routes = append(have.Routes, m.foreign...)
	for before, after := range ordered.Diff(m.plan.Parts, want.Parts) {
		if before != nil {
			have.addPart(before)
		}
		if after != nil {
			wanted.addPart(after)
		}
	}
	return have, wanted
}

// applyDifference applies the difference of want from the remembered plan.
func (r *Reconciler) applyDifference(ctx context.Context, want Plan) outcome {
	r.expect(want)
	have, wanted := r.memory.difference(want)
	out := carryOut(ctx, r.k, have, wanted)
	out.userspace = userspaceLinks(r.memory.links)
	r.memory.valid = out.complete()
	r.memory.plan = want
	return out
}

// compareAll reads the kernel's state, compares it with want and applies the difference.
func (r *Reconciler) compareAll(ctx context.Context, want Plan) outcome {
	r.expect(want)
	out := reconcile(ctx, r.k, want.Whole())
	r.memory = memory{
		valid: out.complete(), plan: want, links: out.links, foreign: out.foreign,
	}
	return out
}

// expect records the objects of a plan that is about to be applied, so that the kernel's
// notifications about them are recognised.
func (r *Reconciler) expect(want Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var added []Object
	if !reflect.DeepEqual(r.expectedPlan.State, want.State) {
		for o := range r.expectedPlan.Objects() {
			r.expected.remove(o)
		}
		for o := range want.State.Objects() {
			added = append(added, o)
		}
	}
	for before, after := range ordered.Diff(r.expectedPlan.Parts, want.Parts) {
		if before != nil {
			for _, o := range before.Objects {
				r.expected.remove(o)
			}
		}
		if after != nil {
			added = append(added, after.Objects...)
		}
	}
	for _, o := range added {
		r.expected.add(o)
	}
	r.expectedPlan = want
}

// contradicts reports whether an event may contradict the memory. The kernel also notifies of this
// daemon's own writes: an object that is as expected, or gone as expected, is no news.
func (r *Reconciler) contradicts(e Event) bool {
	if !r.relevant(e) {
		return false
	}
	if e.Object == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Deleted {
		return r.expected.has(KeyOf(e.Object))
	}
	return !r.expected.has(e.Object)
}
