package backend

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ctrl"
	"weft/deploy/lab"
)

var errNotYet = errors.New("not yet")

// must is for lookups that cannot fail unless the test itself is broken.
func must(l netlink.Link, err error) netlink.Link {
	if err != nil {
		panic(err)
	}
	return l
}

func first(errs []error) error { return errors.Join(errs...) }

func isNeighbour(o ctrl.Object) bool {
	_, ok := o.(ctrl.Neighbour)
	return ok && o.(ctrl.Neighbour).IP.Is4()
}
func isFDB(o ctrl.Object) bool { _, ok := o.(ctrl.FDBEntry); return ok && o.(ctrl.FDBEntry).Dst.Is4() }

// objects lists the matching neighbours and forwarding entries of the overlay devices.
func objects(k *ctrl.Kernel, which func(ctrl.Object) bool) []ctrl.Object {
	s, err := k.Read(ctrl.OverlayName)
	if err != nil {
		panic(err)
	}
	var out []ctrl.Object
	for _, n := range s.Neighbours {
		out = append(out, n)
	}
	for _, f := range s.FDB {
		out = append(out, f)
	}
	n := 0
	for _, o := range out {
		if which(o) {
			out[n] = o
			n++
		}
	}
	return out[:n]
}

// deletes returns the operations that delete the matching objects.
func deletes(k *ctrl.Kernel, which func(ctrl.Object) bool) []ctrl.Op {
	var ops []ctrl.Op
	for _, o := range objects(k, which) {
		ops = append(ops, ctrl.Op{Verb: ctrl.Delete, Object: o})
	}
	return ops
}

// change replaces each matching object by another.
func change(k *ctrl.Kernel, which func(ctrl.Object) bool, by func(ctrl.Object) ctrl.Object) error {
	var ops []ctrl.Op
	for _, o := range objects(k, which) {
		ops = append(ops, ctrl.Op{Verb: ctrl.Replace, Object: by(o)})
	}
	if len(ops) == 0 {
		return errors.New("no matching object")
	}
	return first(k.Apply(context.Background(), ops))
}

// ownRoute returns the route to a prefix with Weft's protocol.
func ownRoute(k *ctrl.Kernel, dst string) (ctrl.Route, error) {
	s, err := k.Read(func(string) bool { return false })
	if err != nil {
		return ctrl.Route{}, err
	}
	for _, r := range s.Routes {
		if r.Dst == prefix(dst) && r.Protocol == ctrl.RouteProtocol {
			return r, nil
		}
	}
	return ctrl.Route{}, errors.New("no own route to " + dst)
}

func deleteRoute(dst string) func(*ctrl.Kernel) error {
	return func(k *ctrl.Kernel) error {
		r, err := ownRoute(k, dst)
		if err != nil {
			return err
		}
		return first(k.Apply(context.Background(), []ctrl.Op{{Verb: ctrl.Delete, Object: r}}))
	}
}

// changeRoute redirects a route to another device and keeps its protocol.
func changeRoute(dst, dev string) func(*ctrl.Kernel) error {
	return func(k *ctrl.Kernel) error {
		r, err := ownRoute(k, dst)
		if err != nil {
			return err
		}
		r.Dev, r.OnLink = dev, true
		return first(k.Apply(context.Background(), []ctrl.Op{{Verb: ctrl.Replace, Object: r}}))
	}
}

// deviceBreakages returns the breakages of an overlay device.
func deviceBreakages(dev string) []breakage {
	return []breakage{
		{"device deleted", func(k *ctrl.Kernel) error { return netlink.LinkDel(must(netlink.LinkByName(dev))) }},
		{"device down", func(k *ctrl.Kernel) error { return netlink.LinkSetDown(must(netlink.LinkByName(dev))) }},
		{"MTU changed", func(k *ctrl.Kernel) error { return netlink.LinkSetMTU(must(netlink.LinkByName(dev)), 1300) }},
		{"address deleted", func(k *ctrl.Kernel) error {
			return netlink.AddrDel(must(netlink.LinkByName(dev)), &netlink.Addr{IPNet: ipNet(prefix("10.5.1.0/32"))})
		}},
	}
}

// needLink skips the test if the kernel lacks the device type.
func needLink(t *testing.T, l netlink.Link, kind string) {
	t.Helper()
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("NOT TESTED: this kernel has no %s", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
}

// needFOU skips the test if the kernel cannot carry the udp backend.
func needFOU(t *testing.T) {
	t.Helper()
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	why, err := k.ProbeFOU(ctrl.IPIP{FOUPort: defaultUDPPort, PathMTU: true, TTL: outerTTL})
	if err != nil {
		t.Fatal(err)
	}
	if why != "" {
		t.Skipf("NOT TESTED: %s", why)
	}
}

// difference lists the operations that turn have into want, as a Reconciler would apply them.
func difference(have, want ctrl.State) ([]string, error) {
	r := recorder{state: have}
	err := ctrl.ApplyOnce(&r, want)
	return r.ops, err
}

// recorder is a kernel with a fixed state that records the operations on it.
type recorder struct {
	state ctrl.State
	ops   []string
}

func (r *recorder) Read(func(string) bool) (ctrl.State, error) { return r.state, nil }

func (r *recorder) Apply(_ context.Context, ops []ctrl.Op) []error {
	for _, o := range ops {
		r.ops = append(r.ops, o.String())
	}
	return make([]error, len(ops))
}

func (r *recorder) Watch(ctx context.Context, _ func(ctrl.Event) bool, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}

// ipNet converts a prefix, keeping the host bits.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// open opens the kernel of this namespace.
func open(t *testing.T) *ctrl.Kernel {
	t.Helper()
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// addBridge creates a device that is up and has addresses, and deletes it after the test.
func addBridge(t *testing.T, name string, addrs ...string) netlink.Link {
	t.Helper()
	l, err := bridge(name, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			t.Error(err)
		}
	})
	return l
}

// bridge creates a bridge without ports, as every tested kernel has bridges.
func bridge(name string, addrs ...string) (netlink.Link, error) {
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}}
	if err := netlink.LinkAdd(l); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix(a)), Flags: unix.IFA_F_NODAD}); err != nil {
			return nil, err
		}
	}
	return l, netlink.LinkSetUp(l)
}

// await waits until ok returns true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	err := lab.Await(t.Context(), patience(5*time.Second), what, func() error {
		if !ok() {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
