package ctrl

import (
	"context"
	"slices"
	"sync"
)

// fakeKernel is a kernel that is a value. Operations change it as they would a real one; fail can refuse them.
type fakeKernel struct {
	mu      sync.Mutex
	state   State
	reads   int
	applied []op
	fail    func(op) error
	readErr error
	changed func() // the sign to whoever watches
	watchEr error  // breaks the next Watch
	watches int
}

func (f *fakeKernel) read(func(string) bool) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return f.state, f.readErr
}

func (f *fakeKernel) apply(_ context.Context, ops []op) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, o := range ops {
		var err error
		if f.fail != nil {
			err = f.fail(o)
		}
		if err == nil {
			f.applied = append(f.applied, o)
			f.state = applied(f.state, o)
		}
		errs = append(errs, err)
	}
	return errs
}

func (f *fakeKernel) watch(ctx context.Context, _ func(event) bool, changed func()) error {
	f.mu.Lock()
	f.changed = changed
	f.watches++
	err := f.watchEr
	f.watchEr = nil
	f.mu.Unlock()
	changed()
	if err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// set changes the kernel behind the reconciler's back and gives the sign that a kernel would give.
func (f *fakeKernel) set(change func(*State)) {
	f.mu.Lock()
	s := f.state
	change(&s)
	f.state = s
	changed := f.changed
	f.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// count is how often the kernel was read.
func (f *fakeKernel) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

func (f *fakeKernel) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := texts(f.applied)
	f.applied = nil
	return s
}

// applied is the state after one operation; s is left alone.
func applied(s State, o op) State {
	switch x := o.object.(type) {
	case Link:
		return appliedLink(s, o.verb, x)
	case Addr:
		s.Addrs = put(s.Addrs, o.verb, x, func(a Addr) any { return a })
	case Route:
		same := func(r Route) any { return r.key() }
		if o.verb == doDelete {
			same = func(r Route) any { return r }
		}
		s.Routes = put(s.Routes, o.verb, x, same)
	case Neighbour:
		s.Neighbours = put(s.Neighbours, o.verb, x, func(n Neighbour) any { return Neighbour{Dev: n.Dev, IP: n.IP} })
	case FDBEntry:
		s.FDB = put(s.FDB, o.verb, x, func(e FDBEntry) any { return FDBEntry{Dev: e.Dev, MAC: e.MAC} })
	case FOUPort:
		s.FOU = put(s.FOU, o.verb, x, func(p FOUPort) any { return p })
	case Tunnel:
		s.Tunnels = put(s.Tunnels, o.verb, x, func(t Tunnel) any { return t.Dev })
	case Peer:
		s.Peers = put(s.Peers, o.verb, x, func(p Peer) any { return Peer{Dev: p.Dev, PublicKey: p.PublicKey} })
	case Command:
		s.Commands = put(s.Commands, o.verb, x, func(c Command) any { return c.ID })
	}
	return s
}

func put[T any](set []T, v verb, x T, key func(T) any) []T {
	out := slices.DeleteFunc(slices.Clone(set), func(y T) bool { return key(y) == key(x) })
	if v != doDelete {
		out = append(out, x)
	}
	return out
}

func appliedLink(s State, v verb, x Link) State {
	byName := func(l Link) any { return l.Name }
	if v == doChange {
		for _, l := range s.Links {
			if l.Name != x.Name {
				continue
			}
			if x.MTU != 0 {
				l.MTU = x.MTU
			}
			if x.TxQueueLen != 0 {
				l.TxQueueLen = x.TxQueueLen
			}
			if x.MAC != (MAC{}) {
				l.MAC = x.MAC
			}
			l.Up, l.IgnoreRA, l.Software = l.Up || x.Up, l.IgnoreRA || x.IgnoreRA, l.Software || x.Software
			x = l
			break
		}
	}
	s.Links = put(s.Links, v, x, byName)
	if v == doDelete {
		s.Addrs, s.Routes = notOn(s.Addrs, x.Name), notOn(s.Routes, x.Name)
		s.Neighbours, s.FDB = notOn(s.Neighbours, x.Name), notOn(s.FDB, x.Name)
		s.Tunnels, s.Peers = notOn(s.Tunnels, x.Name), notOn(s.Peers, x.Name)
	}
	return s
}
