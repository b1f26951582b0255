package ctrl

import (
	"fmt"
	"slices"
	"strings"
)

// Verb is the kind of an operation.
type Verb int

// The verbs of an Op.
const (
	Create  Verb = iota // create a device
	Change              // set the non-zero fields of a device
	Replace             // add, or replace the object with the same key
	Delete
)

// String returns the verb for logs.
func (v Verb) String() string {
	return [...]string{"create", "change", "replace", "delete"}[v]
}

// Object is the object of an operation: one of the value types of a State.
type Object interface {
	device() string // the device that it belongs to; empty if none
	fmt.Stringer
}

func (l Link) device() string      { return l.Name }
func (a Addr) device() string      { return a.Dev }
func (r Route) device() string     { return r.Dev }
func (n Neighbour) device() string { return n.Dev }
func (f FDBEntry) device() string  { return f.Dev }
func (FOUPort) device() string     { return "" }
func (t Tunnel) device() string    { return t.Dev }
func (p Peer) device() string      { return p.Dev }
func (Command) device() string     { return "" }

// Op is one operation on the kernel.
type Op struct {
	Verb   Verb
	Object Object
}

// String formats the operation for logs and errors.
func (o Op) String() string { return o.Verb.String() + " " + o.Object.String() }

// changes is the result of diff.
type changes struct {
	ops       []Op     // in an order in which none depends on a later one
	waiting   []string // external devices that are missing or down
	conflicts []string // foreign objects that block wanted ones
	foreign   []Route  // existing routes inside the networks that are not owned
}

// diff lists the operations that turn have into want. It is pure: no kernel, no clock.
func diff(have, want State) changes {
	d := differ{
		have: have, want: want, owned: findOwnership(have, want),
		present: map[string]Link{}, missing: map[string]bool{},
	}
	d.links()
	d.fou()
	d.addrs()
	d.entries()
	d.peers()
	d.policies()
	d.routes()
	d.commands()
	return changes{
		ops: slices.Concat(d.stage[:]...), waiting: d.waiting, conflicts: d.conflicts,
		foreign: d.foreign,
	}
}

// The stages of a set of changes, in their order.
const (
	stageFree     = iota // free names and ports
	stageDevices         // create devices, on which the rest depends
	stageAddrs           // add addresses
	stageEntries         // add neighbours, forwarding entries, peers and policies
	stageRoutes          // switch the routes to them
	stageClear           // delete entries that no route uses any more
	stageCommands        // run commands
	stages
)

// differ collects the operations by stage.
type differ struct {
	have, want State
	owned      ownership
	present    map[string]Link // the kernel's devices by name
	missing    map[string]bool // devices whose dependants have to wait

	stage              [stages][]Op
	waiting, conflicts []string
	foreign            []Route
}

func (d *differ) add(stage int, v Verb, o Object) {
	d.stage[stage] = append(d.stage[stage], Op{v, o})
}

// links creates, recreates or changes the wanted devices and deletes the stale ones.
func (d *differ) links() {
	for _, l := range d.have.Links {
		d.present[l.Name] = l
	}
	for _, l := range d.owned.stale {
		d.deleteLink(l)
	}
	for _, w := range d.want.Links {
		d.link(w)
	}
	have := setOf(d.have.Tunnels)
	for _, t := range d.want.Tunnels {
		if d.ready(t.Dev) && !have[t] {
			d.add(stageDevices, Replace, t)
		}
	}
}

// link creates, recreates or changes one wanted device.
func (d *differ) link(w Link) {
	h, ok := d.present[w.Name]
	if ok && !h.sameSettings(w) {
		if !h.deletable() {
			d.conflicts = append(d.conflicts,
				fmt.Sprintf("device %s has type %q, want %q", w.Name, h.Kind, w.Kind))
			d.missing[w.Name] = true
			return
		}
		d.deleteLink(h)
		ok = false
	}
	switch {
	case ok:
		if c, differs := linkChange(h, w); differs {
			d.add(stageDevices, Change, c)
		}
	case d.rename(w):
	case w.External:
		d.wait(w.Name)
	default:
		d.add(stageDevices, Create, w)
		d.present[w.Name] = w
	}
}

// rename gives a device its name back if another program has changed it: a device of the same kind
// with an address that belongs to the missing one. Everything on it waits for the next diff.
func (d *differ) rename(w Link) bool {
	for _, h := range d.have.Links {
		if h.Kind != w.Kind || OverlayName(h.Name) || d.owned.wanted[h.Name] ||
			!slices.ContainsFunc(d.want.Addrs, func(a Addr) bool {
				return a.Dev == w.Name && slices.Contains(d.have.Addrs, Addr{h.Name, a.Prefix})
			}) {
			continue
		}
		d.add(stageFree, Change, Link{Name: w.Name, Kind: w.Kind, FormerName: h.Name})
		d.wait(w.Name)
		return true
	}
	return false
}

// deleteLink deletes a device, and with it everything that the kernel has on it.
func (d *differ) deleteLink(l Link) {
	d.add(stageFree, Delete, Link{Name: l.Name, Kind: l.Kind})
	d.have.Addrs = notOn(d.have.Addrs, l.Name)
	d.have.Routes = notOn(d.have.Routes, l.Name)
	d.have.Neighbours = notOn(d.have.Neighbours, l.Name)
	d.have.FDB = notOn(d.have.FDB, l.Name)
	d.have.Tunnels = notOn(d.have.Tunnels, l.Name)
	d.have.Peers = notOn(d.have.Peers, l.Name)
}

func notOn[T Object](s []T, dev string) []T {
	return slices.DeleteFunc(slices.Clone(s), func(o T) bool { return o.device() == dev })
}

// linkChange returns the settings of w that h does not have yet.
func linkChange(h, w Link) (Link, bool) {
	c := Link{Name: w.Name}
	if w.MTU != 0 && w.MTU != h.MTU {
		c.MTU = w.MTU
	}
	if w.TxQueueLen != 0 && w.TxQueueLen != h.TxQueueLen {
		c.TxQueueLen = w.TxQueueLen
	}
	if w.MAC != (MAC{}) && w.MAC != h.MAC {
		c.MAC = w.MAC
	}
	c.Up = w.Up && !h.Up
	c.AcceptRAOff = w.AcceptRAOff && !h.AcceptRAOff
	c.NoTxOffload = w.NoTxOffload && !h.NoTxOffload
	return c, c != Link{Name: w.Name}
}

func (d *differ) wait(dev string) {
	if !d.missing[dev] {
		d.missing[dev] = true
		d.waiting = append(d.waiting, dev)
	}
}

// ready reports whether a device exists, or will by the time it is needed; if not, it is added to
// the waiting ones. A device that the plan does not configure has to be up, too, because the kernel
// rejects routes on it otherwise.
func (d *differ) ready(dev string) bool {
	if dev == "" {
		return true
	}
	if l, ok := d.present[dev]; !ok || !l.Up && !d.owned.wanted[dev] {
		d.wait(dev)
	}
	return !d.missing[dev]
}

// fou closes ports that must be free or whose device is deleted, and opens the wanted ones.
func (d *differ) fou() {
	have, want := setOf(d.have.FOU), setOf(d.want.FOU)
	for _, p := range slices.Concat(d.want.FreePorts, d.owned.staleFOU) {
		if have[p] && !want[p] {
			d.add(stageFree, Delete, p)
			delete(have, p)
		}
	}
	for _, p := range d.want.FOU {
		if !have[p] {
			d.add(stageDevices, Replace, p)
		}
	}
}

func (d *differ) addrs() {
	have, want := setOf(d.have.Addrs), setOf(d.want.Addrs)
	for _, a := range d.want.Addrs {
		if d.ready(a.Dev) && !have[a] {
			d.add(stageAddrs, Replace, a)
		}
	}
	for _, a := range d.have.Addrs {
		if !want[a] && d.owned.wanted[a.Dev] &&
			Contains(d.want.Networks, HostPrefix(a.Prefix.Addr())) {
			d.add(stageClear, Delete, a)
		}
	}
}

// entries reconciles permanent neighbours and forwarding entries.
func (d *differ) entries() {
	reconcileSet(d, d.have.Neighbours, d.want.Neighbours)
	reconcileSet(d, d.have.FDB, d.want.FDB)
}

func (d *differ) peers() {
	reconcileSet(d, d.have.Peers, d.want.Peers)
}

// reconcileSet replaces wanted objects that differ or are missing, and deletes objects on wanted
// devices whose key is not wanted.
func reconcileSet[T interface {
	comparable
	Object
}](d *differ, have, want []T) {
	existing, wanted := setOf(have), map[any]bool{}
	for _, w := range want {
		wanted[KeyOf(w)] = true
		if d.ready(w.device()) && !existing[w] {
			d.add(stageEntries, Replace, w)
		}
	}
	for _, h := range have {
		if !wanted[KeyOf(h)] && d.owned.wanted[h.device()] {
			d.add(stageClear, Delete, h)
		}
	}
}

func setOf[T comparable](s []T) map[T]bool {
	m := make(map[T]bool, len(s))
	for _, x := range s {
		m[x] = true
	}
	return m
}

// key identifies a route within a table, as the kernel does.
func (r Route) key() Route { return Route{Dst: r.Dst, Metric: r.Metric} }

// routes deletes owned routes that are not wanted, then sets the wanted ones.
func (d *differ) routes() {
	have, wanted := map[Route][]Route{}, map[Route]bool{}
	for _, r := range d.want.Routes {
		wanted[r.key()] = true
	}
	for _, r := range d.have.Routes {
		owned := d.owned.ownsRoute(r)
		if !owned && Contains(d.want.Networks, r.Dst) {
			d.foreign = append(d.foreign, r)
		}
		if k := r.key(); wanted[k] {
			have[k] = append(have[k], r)
		} else if owned {
			d.add(stageRoutes, Delete, r)
		}
	}
	for _, r := range d.want.Routes {
		if d.ready(r.Dev) {
			d.route(r, have[r.key()])
		}
	}
}

// route handles one wanted route, given the existing routes with its key: usually none or one, more
// if another program appended a route or added next hops to it.
func (d *differ) route(w Route, have []Route) {
	if len(have) == 1 && have[0] == w {
		return
	}
	for _, h := range have {
		switch {
		case h == w:
		case d.owned.ownsRoute(h):
			if len(have) > 1 {
				d.add(stageRoutes, Delete, h)
			}
		case h.Protocol == protocolBoot && (h.Kind == Forward || h.Kind == Blackhole) &&
			Contains(d.want.Networks, h.Dst):
			// flannel would have its own route with this key and of this kind: replace it.
		case h.Dev == w.Dev && h.Via == w.Via && h.Kind == w.Kind:
			return // a foreign route with the same effect
		default:
			d.conflicts = append(d.conflicts, fmt.Sprintf("%s blocks %s", h, w))
			return
		}
	}
	d.add(stageRoutes, Replace, w)
}

// commands runs the commands that are newly wanted, and the removal of those that are no longer
// wanted in this form.
func (d *differ) commands() {
	have, want := setOf(d.have.Commands), setOf(d.want.Commands)
	for _, c := range d.have.Commands {
		if !want[c] {
			d.add(stageCommands, Delete, c)
		}
	}
	for _, c := range d.want.Commands {
		if !have[c] {
			d.add(stageCommands, Replace, c)
		}
	}
}

// conflictError returns the error for conflicts, with the first few in full.
func conflictError(conflicts []string) error {
	const shown = 3
	s := slices.Sorted(slices.Values(conflicts))
	more := ""
	if len(s) > shown {
		more = fmt.Sprintf(" (and %d more)", len(s)-shown)
		s = s[:shown]
	}
	return fmt.Errorf("not owned by this daemon: %s%s", strings.Join(s, "; "), more)
}
