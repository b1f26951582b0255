package underlay

import (
	"context"
	"time"

	"weft/ctrl"
)

// Choose picks the underlay interface of k's network namespace. The interface inUse, unless it is
// zero, stays while it is up and has its addresses. Choose waits a few seconds for addresses that
// are still checked for duplicates, and for another address than a link-local one. The error lists
// the candidates that were tried and the existing interfaces.
func Choose(ctx context.Context, k *ctrl.Kernel, o Options, inUse Iface) (Iface, error) {
	for begin := time.Now(); ; {
		h, err := read(k)
		if err != nil {
			return Iface{}, err
		}
		i, err := choose(o, h, k.RouteTo, inUse)
		if err != nil || !h.tentative(i) && i.rank&linkLocal == 0 {
			return i, err
		}
		if time.Since(begin) > settleTime {
			return choose(o, h.settled(inUse), k.RouteTo, inUse)
		}
		select {
		case <-ctx.Done():
			return Iface{}, ctx.Err()
		case <-time.After(settleInterval):
		}
	}
}

// settleTime bounds the wait for an address. Duplicate address detection takes up to two seconds
// with the kernel's defaults (a random delay, and one probe per RFC 4862).
const (
	settleTime     = 5 * time.Second
	settleInterval = 100 * time.Millisecond
)

func read(k *ctrl.Kernel) (hostNet, error) {
	s, err := k.ReadHost()
	if err != nil {
		return hostNet{}, err
	}
	addrs, err := k.IfaceAddrs()
	return hostNet{links: s.Links, addrs: addrs, routes: s.Routes}, err
}

// Watch calls changed with the choice at the start and whenever the interface, its address, its MTU
// or its note changes. The interface that inUse returns stays in use while it is up and has its
// addresses. Another interface or a worse address replaces it after a moment only. If no interface
// matches for longer than a moment, Watch calls changed once with the error, and again with the
// choice as soon as an interface matches. It blocks until ctx ends, and returns an error only if
// the kernel cannot be watched. It works in the network namespace of the calling thread.
func Watch(ctx context.Context, o Options, inUse func() Iface, changed func(Iface, error)) error {
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		return err
	}
	defer k.Close()
	w := ifaceWatch{options: o, inUse: inUse, changed: changed,
		choose: func(o Options, inUse Iface) (Iface, error) {
			h, err := read(k)
			if err != nil {
				return Iface{}, err
			}
			return choose(o, h.settled(inUse), k.RouteTo, inUse)
		}}
	watch := func(ctx context.Context, notify func()) error {
		return k.Watch(ctx, relevant,
			notify)
	}
	return w.run(ctx, watch, checkInterval)
}

// checkInterval is how often the choice is repeated without a notification from the kernel.
const checkInterval = 10 * time.Second
