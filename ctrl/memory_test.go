package ctrl

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"weft/lease/ordered"
)

// testPart returns the part of node i, with one of several next hops.
func testPart(i, version int) *Part {
	m := MAC{2, 0, 0, 1, byte(version), byte(i)}
	via := netip.AddrFrom4([4]byte{10, 5, byte(i), 0})
	dst := netip.PrefixFrom(via, 24)
	return &Part{Subnet: dst, Objects: []Object{
		Route{Dst: dst, Via: via, Dev: "flannel.1", OnLink: true, Protocol: RouteProtocol},
		Neighbour{Dev: "flannel.1", IP: via, MAC: m},
		FDBEntry{Dev: "flannel.1", MAC: m, Dst: netip.AddrFrom4([4]byte{172, 31, byte(version), byte(i)})},
	}}
}

// wantWhole compares the kernel's routes and entries with the plan as one state.
func wantWhole(t *testing.T, f *fakeKernel, p Plan) {
	t.Helper()
	f.mu.Lock()
	have := f.state
	f.mu.Unlock()
	want := p.Whole()
	for _, s := range [][2][]string{
		{objectTexts(have.Routes), objectTexts(want.Routes)},
		{objectTexts(have.Neighbours), objectTexts(want.Neighbours)},
		{objectTexts(have.FDB), objectTexts(want.FDB)},
	} {
		if !slices.Equal(s[0], s[1]) {
			t.Fatalf("have %q\nwant %q", s[0], s[1])
		}
	}
}

func objectTexts[T fmt.Stringer](objects []T) []string {
	var out []string
	for _, o := range objects {
		out = append(out, o.String())
	}
	slices.Sort(out)
	return out
}

// TestReconcilerPlanChurn checks that applying the differences of plans has the result of applying
// whole ones, without reading the kernel, and that it reads the kernel after a foreign change.
func TestReconcilerPlanChurn(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	f := &fakeKernel{state: State{Links: []Link{eth0}}}
	reconciling(t, f, func(r *Reconciler) {
		base := vxlanWant()
		base.Routes, base.Neighbours, base.FDB = nil, nil, nil
		plan := Plan{State: base}
		r.SetPlan(plan)
		synctest.Wait()
		for step := range 300 {
			var remove, put []*Part
			for range rng.IntN(4) {
				remove = append(remove, testPart(2+rng.IntN(40), 0))
				put = append(put, testPart(2+rng.IntN(40), rng.IntN(3)))
			}
			plan.Parts = plan.Parts.With(remove, put)
			reads := f.count()
			r.SetPlan(plan)
			synctest.Wait()
			wantWhole(t, f, plan)
			if f.count() != reads {
				t.Fatalf("step %d: %d reads without a notification", step, f.count()-reads)
			}
			if step%10 == 0 {
				f.set(func(s *State) { s.Routes, s.FDB = nil, slices.Clone(s.FDB[:len(s.FDB)/2]) })
				after(minDebounce)
				wantWhole(t, f, plan)
			}
		}
	})
}

// TestReconcilerForeignRoute checks that a plan does not replace a route of another program.
func TestReconcilerForeignRoute(t *testing.T) {
	foreign := Route{Dst: netip.MustParsePrefix("10.5.9.0/24"), Dev: "eth0", Protocol: 4}
	f := &fakeKernel{state: State{Links: []Link{eth0}, Routes: []Route{foreign}}}
	reconciling(t, f, func(r *Reconciler) {
		plan := Plan{State: vxlanWant()}
		r.SetPlan(plan)
		synctest.Wait()
		plan.Parts = ordered.New([]*Part{testPart(9, 1)})
		r.SetPlan(plan)
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if !slices.Contains(f.state.Routes, foreign) {
			t.Errorf("routes are %v", f.state.Routes)
		}
	})
}

func TestContradicts(t *testing.T) {
	p := testPart(2, 1)
	route, neighbour, entry := p.Objects[0].(Route), p.Objects[1].(Neighbour), p.Objects[2].(FDBEntry)
	r := NewReconciler(nil, ReconcilerOptions{})
	plan := Plan{State: vxlanWant(), Parts: ordered.New([]*Part{p})}
	r.SetPlan(plan)
	r.expect(plan)
	other := route
	other.Via = other.Via.Next()
	unknown := testPart(3, 1).Objects[0].(Route)
	noMAC := neighbour
	noMAC.MAC = MAC{}
	for _, test := range []struct {
		event Event
		want  bool
	}{
		{Event{Kind: RouteEvent, Dst: route.Dst, Object: route}, false},
		{Event{Kind: RouteEvent, Dst: route.Dst, Object: route, Deleted: true}, true},
		{Event{Kind: RouteEvent, Dst: route.Dst, Object: other}, true},
		{Event{Kind: RouteEvent, Dst: route.Dst}, true},
		{Event{Kind: RouteEvent, Dst: unknown.Dst, Object: unknown}, true},
		{Event{Kind: RouteEvent, Dst: unknown.Dst, Object: unknown, Deleted: true}, false},
		{Event{Kind: NeighEvent, Dev: "flannel.1", Permanent: true, Object: neighbour}, false},
		{Event{Kind: NeighEvent, Dev: "flannel.1", Permanent: true, Object: noMAC, Deleted: true}, true},
		{Event{Kind: NeighEvent, Dev: "flannel.1", Permanent: true, Object: entry}, false},
		{Event{Kind: NeighEvent, Dev: "flannel.1", Permanent: true, Object: entry, Deleted: true}, true},
		{Event{Kind: LinkEvent, Dev: "flannel.1"}, true},
	} {
		if got := r.contradicts(test.event); got != test.want {
			t.Errorf("%+v: %t", test.event, got)
		}
	}
}
