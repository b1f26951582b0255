package ctrl

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// printingKernel is a fakeKernel that prints the operations.
type printingKernel struct{ fakeKernel }

func (k *printingKernel) Apply(ctx context.Context, ops []Op) []error {
	for _, o := range ops {
		fmt.Println(o)
	}
	return k.fakeKernel.Apply(ctx, ops)
}

// A reconciler applies the wanted state, and repairs it when another program changes the kernel's
// state.
func ExampleReconciler() {
	k := &printingKernel{fakeKernel{state: State{Links: []Link{{Name: "eth0", MTU: 1500, Up: true}}}}}
	r := NewReconciler(k, ReconcilerOptions{})
	r.Set(State{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")},
		Routes: []Route{{
			Dst: netip.MustParsePrefix("10.5.2.0/24"), Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth0",
			Protocol: RouteProtocol,
		}},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for !r.Status().Synced {
		time.Sleep(time.Millisecond)
	}
	k.set(func(s *State) { s.Routes = nil }) // another program deletes the route
	for r.Status().Repairs == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	fmt.Println(<-done)
	// Output:
	// replace route 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 157
	// replace route 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 157
	// context canceled
}
