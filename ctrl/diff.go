package ctrl

import (
	"fmt"
	"slices"
	"strings"
)

// verb says what to do with an object.
type verb int

// The verbs of an op.
const (
	doCreate  verb = iota // make a device
	doChange              // set what is non-zero in a device's value
	doReplace             // add, or put in the place of what has the same key
	doDelete
)

// String is the verb as a word for logs.
func (v verb) String() string {
	return [...]string{"create", "change", "replace", "delete"}[v]
}

// object is what an operation acts upon: one of the value types of a State.
type object interface {
	device() string // the device it lives on; empty if on none
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

// op is one operation on the kernel.
type op struct {
	verb   verb
	object object
}

// String is the operation for logs and errors.
func (o op) String() string { return o.verb.String() + " " + o.object.String() }

// changes is the result of diff.
type changes struct {
	ops       []op     // in an order that works when each waits for the one before
	waiting   []string // devices that are not there, or not up, and not ours to make so
	conflicts []string // what stands in the way and is not ours to remove
}

// diff lists what leads from have to want. It is pure: no kernel, no clock.
func diff(have, want State) changes {
	d := differ{have: have, want: want, claims: claim(have, want), present: map[string]Link{}, absent: map[string]bool{}}
	d.links()
	d.fou()
	d.addrs()
	d.entries()
	d.peers()
	d.routes()
	d.commands()
	return changes{ops: slices.Concat(d.stage[:]...), waiting: d.waiting, conflicts: d.conflicts}
}

// The stages of a set of changes, in their order: what frees names and ports, what others stand on, what makes a path,
// what uses the path, and last what is no longer used.
const (
	stageFree = iota
	stageDevices
	stageAddrs
	stageEntries
	stageRoutes
	stageClear
	stageCommands
	stages
)

// differ gathers the operations by stage.
type differ struct {
	have, want State
	claims     claims
	present    map[string]Link // the devices the kernel has, by name
	absent     map[string]bool // devices whose dependants have to wait

	stage              [stages][]op
	waiting, conflicts []string
}

func (d *differ) add(stage int, v verb, o object) {
	d.stage[stage] = append(d.stage[stage], op{v, o})
}

// links settles the devices: wanted ones are made, made anew or changed; ours that are not wanted go.
func (d *differ) links() {
	for _, l := range d.have.Links {
		d.present[l.Name] = l
	}
	for _, l := range d.claims.stale {
		d.remove(l)
	}
	for _, w := range d.want.Links {
		h, ok := d.present[w.Name]
		if ok && !h.same(w) {
			if !h.removable() {
				d.conflicts = append(d.conflicts, fmt.Sprintf("device %s is of type %q, not %q", w.Name, h.Kind, w.Kind))
				d.absent[w.Name] = true
				continue
			}
			d.remove(h)
			ok = false
		}
		switch {
		case ok:
			if c, differs := linkChange(h, w); differs {
				d.add(stageDevices, doChange, c)
			}
		case w.Foreign:
			d.wait(w.Name)
		default:
			d.add(stageDevices, doCreate, w)
			d.present[w.Name] = w
		}
	}
	d.tunnels()
}

// same says whether h is such a device as w asks for, so that it need not be made anew.
func (l Link) same(w Link) bool {
	return l.Kind == w.Kind && l.VXLAN == w.VXLAN && l.IPIP == w.IPIP
}

// removable says whether the device is of a kind that only we make under its name. A TUN lives and dies with the
// process that holds it.
func (l Link) removable() bool {
	return overlayName(l.Name) && (l.Kind == KindVXLAN || l.Kind == KindIPIP || l.Kind == KindWireGuard)
}

// remove deletes a device, and with it what the kernel has on it.
func (d *differ) remove(l Link) {
	d.add(stageFree, doDelete, Link{Name: l.Name, Kind: l.Kind})
	d.have.Addrs = notOn(d.have.Addrs, l.Name)
	d.have.Routes = notOn(d.have.Routes, l.Name)
	d.have.Neighbours = notOn(d.have.Neighbours, l.Name)
	d.have.FDB = notOn(d.have.FDB, l.Name)
	d.have.Tunnels = notOn(d.have.Tunnels, l.Name)
	d.have.Peers = notOn(d.have.Peers, l.Name)
}

func notOn[T object](s []T, dev string) []T {
	return slices.DeleteFunc(slices.Clone(s), func(o T) bool { return o.device() == dev })
}

// linkChange is w without what h has already.
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
	c.IgnoreRA = w.IgnoreRA && !h.IgnoreRA
	c.Software = w.Software && !h.Software
	return c, c != Link{Name: w.Name}
}

func (d *differ) tunnels() {
	have := setOf(d.have.Tunnels)
	for _, t := range d.want.Tunnels {
		if d.ready(t.Dev) && !have[t] {
			d.add(stageDevices, doReplace, t)
		}
	}
}

func (d *differ) wait(dev string) {
	if !d.absent[dev] {
		d.absent[dev] = true
		d.waiting = append(d.waiting, dev)
	}
}

// ready says whether a device is there, or will be by the time it is needed; if not, the device is noted as awaited.
// One of others has to be up as well: the kernel takes no routes for it otherwise.
func (d *differ) ready(dev string) bool {
	if dev == "" {
		return true
	}
	if l, ok := d.present[dev]; !ok || !l.Up && !d.claims.wanted[dev] {
		d.wait(dev)
	}
	return !d.absent[dev]
}

// fou takes away ports that are to be free or whose device goes, and opens the wanted ones.
func (d *differ) fou() {
	have, want := setOf(d.have.FOU), setOf(d.want.FOU)
	for _, p := range slices.Concat(d.want.NoFOU, d.claims.staleFOU) {
		if have[p] && !want[p] {
			d.add(stageFree, doDelete, p)
			delete(have, p)
		}
	}
	for _, p := range d.want.FOU {
		if !have[p] {
			d.add(stageDevices, doReplace, p)
		}
	}
}

func (d *differ) addrs() {
	have, want := setOf(d.have.Addrs), setOf(d.want.Addrs)
	for _, a := range d.want.Addrs {
		if d.ready(a.Dev) && !have[a] {
			d.add(stageAddrs, doReplace, a)
		}
	}
	for _, a := range d.have.Addrs {
		if !want[a] && d.claims.wanted[a.Dev] && d.claims.inside(hostPrefix(a.Prefix.Addr())) {
			d.add(stageClear, doDelete, a)
		}
	}
}

// entries settles permanent neighbours and forwarding entries.
func (d *differ) entries() {
	settle(d, d.have.Neighbours, d.want.Neighbours, func(n Neighbour) any { return Neighbour{Dev: n.Dev, IP: n.IP} })
	settle(d, d.have.FDB, d.want.FDB, func(f FDBEntry) any { return FDBEntry{Dev: f.Dev, MAC: f.MAC} })
}

func (d *differ) peers() {
	settle(d, d.have.Peers, d.want.Peers, func(p Peer) any { return Peer{Dev: p.Dev, PublicKey: p.PublicKey} })
}

// settle replaces what is wanted and not there as it is wanted, and deletes what is on our devices under a key that is
// not wanted.
func settle[T interface {
	comparable
	object
}](d *differ, have, want []T, key func(T) any) {
	there, wanted := setOf(have), map[any]bool{}
	for _, w := range want {
		wanted[key(w)] = true
		if d.ready(w.device()) && !there[w] {
			d.add(stageEntries, doReplace, w)
		}
	}
	for _, h := range have {
		if !wanted[key(h)] && d.claims.wanted[h.device()] {
			d.add(stageClear, doDelete, h)
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

// routeKey is what the kernel tells routes of one table apart by.
func (r Route) key() Route { return Route{Dst: r.Dst, Metric: r.Metric} }

// routes removes ours that are not wanted, then puts the wanted ones in place.
func (d *differ) routes() {
	have, wanted := map[Route][]Route{}, map[Route]bool{}
	for _, r := range d.want.Routes {
		wanted[r.key()] = true
	}
	for _, r := range d.have.Routes {
		if k := r.key(); wanted[k] {
			have[k] = append(have[k], r)
		} else if d.claims.route(r) {
			d.add(stageRoutes, doDelete, r)
		}
	}
	for _, r := range d.want.Routes {
		if d.ready(r.Dev) {
			d.route(r, have[r.key()])
		}
	}
}

// route decides about one wanted route, given the routes that have its key: none or one as a rule, more if someone
// appended a route or made it one of several next hops.
func (d *differ) route(w Route, have []Route) {
	if len(have) == 1 && have[0] == w {
		return
	}
	for _, h := range have {
		switch {
		case h == w:
		case d.claims.route(h):
			if len(have) > 1 {
				d.add(stageRoutes, doDelete, h)
			}
		case h.Protocol == protocolBoot && (h.Kind == Forward || h.Kind == Blackhole) && d.claims.inside(h.Dst):
			// In the place where flannel would have put its own, and of a kind that it makes.
		case h.Dev == w.Dev && h.Via == w.Via && h.Kind == w.Kind:
			return // someone else's, and it does the same
		default:
			d.conflicts = append(d.conflicts, fmt.Sprintf("%s is in the way of %s", h, w))
			return
		}
	}
	d.add(stageRoutes, doReplace, w)
}

// commands runs what is newly wanted, and the removal of what is not wanted any more or not in that form.
func (d *differ) commands() {
	have, want := setOf(d.have.Commands), setOf(d.want.Commands)
	for _, c := range d.have.Commands {
		if !want[c] {
			d.add(stageCommands, doDelete, c)
		}
	}
	for _, c := range d.want.Commands {
		if !have[c] {
			d.add(stageCommands, doReplace, c)
		}
	}
}

// conflictError is the error for what stands in the way, the first few by name.
func conflictError(conflicts []string) error {
	const shown = 3
	s := slices.Sorted(slices.Values(conflicts))
	more := ""
	if len(s) > shown {
		more = fmt.Sprintf(" (and %d more)", len(s)-shown)
		s = s[:shown]
	}
	return fmt.Errorf("not ours to change: %s%s", strings.Join(s, "; "), more)
}
