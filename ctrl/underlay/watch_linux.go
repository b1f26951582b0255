package underlay

import (
	"context"
	"time"

	"weft/ctrl"
)

// Choose picks the underlay interface of k's network namespace. The error lists the candidates that
// were tried and the existing interfaces.
func Choose(o Options, k *ctrl.Kernel) (Iface, error) {
	s, err := k.Read(func(string) bool { return false })
	if err != nil {
		return Iface{}, err
	}
	addrs, err := k.IfaceAddrs()
	if err != nil {
		return Iface{}, err
	}
	return choose(o, hostNet{links: s.Links, addrs: addrs, routes: s.Routes}, k.RouteTo)
}

// Watch calls changed with the choice at the start and whenever the interface, its address or its
// MTU changes. If no interface matches for longer than a moment, it calls changed once with the
// error, and again with the choice as soon as an interface matches. It blocks until ctx ends, and
// returns an error only if the kernel cannot be watched. It works in the network namespace of the
// calling thread.
func Watch(ctx context.Context, o Options, changed func(Iface, error)) error {
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		return err
	}
	defer k.Close()
	w := ifaceWatch{options: o, changed: changed,
		choose: func(o Options) (Iface, error) { return Choose(o, k) }}
	watch := func(ctx context.Context, notify func()) error {
		return k.Watch(ctx, relevant,
			notify)
	}
	return w.run(ctx, watch, checkInterval)
}

// checkInterval is how often the choice is repeated without a notification from the kernel.
const checkInterval = 10 * time.Second
