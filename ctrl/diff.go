package ctrl

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Verb says what to do with an object.
type Verb int

// The verbs of an Op.
const (
	Create  Verb = iota // make a device
	Change              // set what is non-zero in a device's value
	Replace             // add, or put in the place of what has the same key
	Delete
)

// String is the verb as a word for logs.
func (v Verb) String() string {
	return [...]string{"create", "change", "replace", "delete"}[v]
}

// object is what an operation acts upon: Link, Addr, Route, Neighbour or FDBEntry.
type object interface {
	device() string
	fmt.Stringer
}

func (l Link) device() string      { return l.Name }
func (a Addr) device() string      { return a.Dev }
func (r Route) device() string     { return r.Dev }
func (n Neighbour) device() string { return n.Dev }
func (f FDBEntry) device() string  { return f.Dev }

// String names the device and what of it is set.
func (l Link) String() string {
	s := "device " + l.Name
	if l.Kind != "" {
		s += " type " + string(l.Kind)
	}
	if l.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.TxQueueLen != 0 {
		s += fmt.Sprintf(" txqueuelen %d", l.TxQueueLen)
	}
	if l.MAC != (MAC{}) {
		s += " address " + l.MAC.String()
	}
	if l.Up {
		s += " up"
	}
	return s
}

// String shows the address as `ip address` takes it.
func (a Addr) String() string { return "address " + a.Prefix.String() + " dev " + a.Dev }

// String shows the entry as `ip neigh` does.
func (n Neighbour) String() string {
	return "neighbour " + n.IP.String() + " dev " + n.Dev + " lladdr " + n.MAC.String()
}

// String shows the entry as `bridge fdb` does.
func (f FDBEntry) String() string {
	return "fdb " + f.MAC.String() + " dev " + f.Dev + " dst " + f.Dst.String()
}

// Op is one operation on the kernel.
type Op struct {
	Verb   Verb
	Object object
}

// String is the operation for logs and errors.
func (o Op) String() string { return o.Verb.String() + " " + o.Object.String() }

// changes is the result of diff.
type changes struct {
	ops       []Op     // in an order that works when each waits for the one before
	waiting   []string // devices that others make and that are not there yet
	conflicts []string // what stands in the way and is not ours to remove
}

// diff lists what leads from have to want. It is pure: no kernel, no clock.
func diff(have, want State) changes {
	d := differ{have: have, want: want, present: map[string]Link{}, absent: map[string]bool{}}
	d.links()
	d.addrs()
	d.entries()
	d.routes()
	return changes{ops: d.ops(), waiting: d.waiting, conflicts: d.conflicts}
}

// differ gathers the operations by stage.
type differ struct {
	have, want State
	present    map[string]Link // the devices the kernel has, by name
	absent     map[string]bool // devices whose dependants have to wait

	linkOps, addrOps, putEntries, routeOps, delEntries, delAddrs []Op
	waiting, conflicts                                           []string
}

func (d *differ) ops() []Op {
	return slices.Concat(d.linkOps, d.addrOps, d.putEntries, d.routeOps, d.delEntries, d.delAddrs)
}

func (d *differ) links() {
	for _, l := range d.have.Links {
		d.present[l.Name] = l
	}
	for _, w := range d.want.Links {
		h, ok := d.present[w.Name]
		switch {
		case !ok && w.Foreign:
			d.wait(w.Name)
		case !ok:
			d.linkOps = append(d.linkOps, Op{Create, w})
			d.forget(w.Name)
		case w.Kind != h.Kind:
			d.conflicts = append(d.conflicts, fmt.Sprintf("device %s is of type %q, not %q", w.Name, h.Kind, w.Kind))
			d.absent[w.Name] = true
		default:
			if c, differs := linkChange(h, w); differs {
				d.linkOps = append(d.linkOps, Op{Change, c})
			}
		}
	}
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
	return c, c != Link{Name: w.Name}
}

func (d *differ) wait(dev string) {
	if !d.absent[dev] {
		d.absent[dev] = true
		d.waiting = append(d.waiting, dev)
	}
}

// forget drops what the kernel has on a device that is about to be made anew.
func (d *differ) forget(dev string) {
	on := func(o object) bool { return o.device() == dev }
	d.have.Addrs = without(d.have.Addrs, on)
	d.have.Routes = without(d.have.Routes, on)
	d.have.Neighbours = without(d.have.Neighbours, on)
	d.have.FDB = without(d.have.FDB, on)
	d.present[dev] = Link{Name: dev}
}

func without[T object](s []T, drop func(object) bool) []T {
	return slices.DeleteFunc(slices.Clone(s), func(o T) bool { return drop(o) })
}

// ready says whether a device is there (or will be by the time it is needed); if not, the device is noted as awaited.
func (d *differ) ready(dev string) bool {
	if _, ok := d.present[dev]; !ok {
		d.wait(dev)
	}
	return !d.absent[dev]
}

func (d *differ) addrs() {
	have, want := setOf(d.have.Addrs), setOf(d.want.Addrs)
	for _, a := range d.want.Addrs {
		if d.ready(a.Dev) && !have[a] {
			d.addrOps = append(d.addrOps, Op{Replace, a})
		}
	}
	for _, a := range d.have.Addrs {
		if !want[a] && d.ours(a.Dev) && d.inside(netip.PrefixFrom(a.Prefix.Addr(), a.Prefix.Addr().BitLen())) {
			d.delAddrs = append(d.delAddrs, Op{Delete, a})
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

// ours says whether a device is one the plan wants.
func (d *differ) ours(dev string) bool {
	return slices.ContainsFunc(d.want.Links, func(l Link) bool { return l.Name == dev })
}

// inside says whether p lies in one of our networks.
func (d *differ) inside(p netip.Prefix) bool {
	return slices.ContainsFunc(d.want.Networks, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

func (d *differ) entries() {
	haveN, wantN := setOf(d.have.Neighbours), setOf(d.want.Neighbours)
	for _, n := range d.want.Neighbours {
		if d.ready(n.Dev) && !haveN[n] {
			d.putEntries = append(d.putEntries, Op{Replace, n})
		}
	}
	haveF, wantF := setOf(d.have.FDB), setOf(d.want.FDB)
	for _, f := range d.want.FDB {
		if d.ready(f.Dev) && !haveF[f] {
			d.putEntries = append(d.putEntries, Op{Replace, f})
		}
	}
	for _, f := range d.have.FDB {
		if !wantF[f] && d.ours(f.Dev) {
			d.delEntries = append(d.delEntries, Op{Delete, f})
		}
	}
	kept := map[[2]string]bool{}
	for n := range wantN {
		kept[[2]string{n.Dev, n.IP.String()}] = true
	}
	for _, n := range d.have.Neighbours {
		if !kept[[2]string{n.Dev, n.IP.String()}] && d.ours(n.Dev) {
			d.delEntries = append(d.delEntries, Op{Delete, n})
		}
	}
}

// routeKey is what the kernel tells routes of one table apart by.
type routeKey struct {
	dst    netip.Prefix
	metric int
}

func (d *differ) routes() {
	have := map[routeKey][]Route{}
	for _, r := range d.have.Routes {
		k := routeKey{r.Dst, r.Metric}
		have[k] = append(have[k], r)
	}
	wanted := map[routeKey]bool{}
	for _, r := range d.want.Routes {
		k := routeKey{r.Dst, r.Metric}
		wanted[k] = true
		if d.ready(r.Dev) {
			d.route(r, have[k])
		}
	}
	var stale []Op
	for _, r := range d.have.Routes {
		if !wanted[routeKey{r.Dst, r.Metric}] && d.ourRoute(r) {
			stale = append(stale, Op{Delete, r})
		}
	}
	d.routeOps = append(stale, d.routeOps...)
}

// route decides about one wanted route, given the routes that have its key.
func (d *differ) route(w Route, have []Route) {
	if slices.Contains(have, w) {
		return
	}
	for _, h := range have {
		switch {
		case d.ourRoute(h) || h.Protocol == protocolBoot && d.inside(h.Dst):
			// Ours, or what flannel left: replaced below.
		case h.Dev == w.Dev && h.Via == w.Via:
			return // someone else's, and it does the same
		default:
			d.conflicts = append(d.conflicts, fmt.Sprintf("the route %s is in the way of %s", h, w))
			return
		}
	}
	d.routeOps = append(d.routeOps, Op{Replace, w})
}

// ourRoute says whether the route carries our mark: our protocol number, or flannel's on one of our devices, and a
// destination inside our networks.
func (d *differ) ourRoute(r Route) bool {
	return d.inside(r.Dst) && (r.Protocol == RouteProtocol || r.Protocol == protocolBoot && d.ours(r.Dev))
}

// conflictError is the error for what stands in the way, the first few by name.
func conflictError(conflicts []string) error {
	const shown = 3
	s := slices.Clone(conflicts)
	slices.SortFunc(s, cmp.Compare[string])
	more := ""
	if len(s) > shown {
		more = fmt.Sprintf(" (and %d more)", len(s)-shown)
		s = s[:shown]
	}
	return fmt.Errorf("not ours to change: %s%s", strings.Join(s, "; "), more)
}
