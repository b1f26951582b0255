package ctrl

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// fakeKernel is a kernel in memory. Operations change it like a real one; fail can reject them.
type fakeKernel struct {
	mu      sync.Mutex
	state   State
	reads   int
	applied []Op
	fail    func(Op) error
	readErr error
	changed func() // notifies the watcher
	watchEr error  // breaks the next Watch
	watches int
}

func (f *fakeKernel) Read(func(string) bool) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return f.state, f.readErr
}

func (f *fakeKernel) Apply(_ context.Context, ops []Op) []error {
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

func (f *fakeKernel) Watch(ctx context.Context, _ func(Event) bool, changed func()) error {
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

// set changes the kernel's state and notifies the watcher, as a kernel would.
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

// count returns the number of reads.
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

// applied returns the state after one operation, without changing s.
func applied(s State, o Op) State {
	switch x := o.Object.(type) {
	case Link:
		return appliedLink(s, o.Verb, x)
	case Addr:
		s.Addrs = put(s.Addrs, o.Verb, x, func(a Addr) any { return a })
	case Route:
		same := func(r Route) any { return r.key() }
		if o.Verb == Delete {
			same = func(r Route) any { return r }
		}
		s.Routes = put(s.Routes, o.Verb, x, same)
	case Neighbour:
		s.Neighbours = put(s.Neighbours, o.Verb, x, func(n Neighbour) any { return Neighbour{Dev: n.Dev, IP: n.IP} })
	case FDBEntry:
		s.FDB = put(s.FDB, o.Verb, x, func(e FDBEntry) any { return FDBEntry{Dev: e.Dev, MAC: e.MAC} })
	case FOUPort:
		s.FOU = put(s.FOU, o.Verb, x, func(p FOUPort) any { return p })
	case Tunnel:
		s.Tunnels = put(s.Tunnels, o.Verb, x, func(t Tunnel) any { return t.Dev })
	case Peer:
		s.Peers = put(s.Peers, o.Verb, x, func(p Peer) any { return Peer{Dev: p.Dev, PublicKey: p.PublicKey} })
	case Policy:
		s.Policies = put(s.Policies, o.Verb, x, func(p Policy) any { return p.id() })
	case Command:
		s.Commands = put(s.Commands, o.Verb, x, func(c Command) any { return c.ID })
	}
	return s
}

func put[T any](set []T, v Verb, x T, key func(T) any) []T {
	out := slices.DeleteFunc(slices.Clone(set), func(y T) bool { return key(y) == key(x) })
	if v != Delete {
		out = append(out, x)
	}
	return out
}

func appliedLink(s State, v Verb, x Link) State {
	byName := func(l Link) any { return l.Name }
	if v == Change {
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
			l.Up, l.AcceptRAOff, l.NoTxOffload = l.Up || x.Up, l.AcceptRAOff || x.AcceptRAOff, l.NoTxOffload ||
				x.NoTxOffload
			x = l
			break
		}
	}
	s.Links = put(s.Links, v, x, byName)
	if v == Delete {
		s.Addrs, s.Routes = notOn(s.Addrs, x.Name), notOn(s.Routes, x.Name)
		s.Neighbours, s.FDB = notOn(s.Neighbours, x.Name), notOn(s.FDB, x.Name)
		s.Tunnels, s.Peers = notOn(s.Tunnels, x.Name), notOn(s.Peers, x.Name)
	}
	return s
}

// dumpState lists the fields of a state, one object per line.
func dumpState(s State) string {
	v := reflect.ValueOf(s)
	var out strings.Builder
	for i := range v.NumField() {
		for j := range v.Field(i).Len() {
			fmt.Fprintf(&out, "  %s %+v\n", v.Type().Field(i).Name, v.Field(i).Index(j).Interface())
		}
	}
	return out.String()
}
