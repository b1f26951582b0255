package ctrl

import (
	"context"
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var errSoFar = errors.New("not so far")

// must is for lookups in breakages; a failure shows as a broken rig at once.
func must(l netlink.Link, err error) netlink.Link {
	if err != nil {
		panic(err)
	}
	return l
}

func first(errs []error) error { return errors.Join(errs...) }

func isNeighbour(o object) bool { _, ok := o.(Neighbour); return ok && o.(Neighbour).IP.Is4() }
func isFDB(o object) bool       { _, ok := o.(FDBEntry); return ok && o.(FDBEntry).Dst.Is4() }

// objects lists what the overlay devices have.
func objects(k *Kernel, which func(object) bool) []object {
	s, err := k.read(overlayName)
	if err != nil {
		panic(err)
	}
	var out []object
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

// deletes are the operations that delete them.
func deletes(k *Kernel, which func(object) bool) []op {
	var ops []op
	for _, o := range objects(k, which) {
		ops = append(ops, op{doDelete, o})
	}
	return ops
}

// change replaces each by another.
func change(k *Kernel, which func(object) bool, by func(object) object) error {
	var ops []op
	for _, o := range objects(k, which) {
		ops = append(ops, op{doReplace, by(o)})
	}
	if len(ops) == 0 {
		return errors.New("nothing there to change")
	}
	return first(k.apply(context.Background(), ops))
}

// ourRoute finds our route to a prefix.
func ourRoute(k *Kernel, dst string) (Route, error) {
	s, err := k.read(func(string) bool { return false })
	if err != nil {
		return Route{}, err
	}
	for _, r := range s.Routes {
		if r.Dst == prefix(dst) && r.Protocol == RouteProtocol {
			return r, nil
		}
	}
	return Route{}, errors.New("no route of ours to " + dst)
}

func deleteRoute(dst string) func(*Kernel) error {
	return func(k *Kernel) error {
		r, err := ourRoute(k, dst)
		if err != nil {
			return err
		}
		return first(k.apply(context.Background(), []op{{doDelete, r}}))
	}
}

// changeRoute sends a route of ours elsewhere, with our mark on it still.
func changeRoute(dst, dev string) func(*Kernel) error {
	return func(k *Kernel) error {
		r, err := ourRoute(k, dst)
		if err != nil {
			return err
		}
		r.Dev, r.OnLink = dev, true
		return first(k.apply(context.Background(), []op{{doReplace, r}}))
	}
}

// deviceBreakages are what may be done to any overlay device.
func deviceBreakages(dev string) []breakage {
	return []breakage{
		{"device deleted", func(k *Kernel) error { return k.h.LinkDel(must(k.h.LinkByName(dev))) }},
		{"device down", func(k *Kernel) error { return k.h.LinkSetDown(must(k.h.LinkByName(dev))) }},
		{"MTU changed", func(k *Kernel) error { return k.h.LinkSetMTU(must(k.h.LinkByName(dev)), 1300) }},
		{"address deleted", func(k *Kernel) error {
			return k.h.AddrDel(must(k.h.LinkByName(dev)), &netlink.Addr{IPNet: ipNet(prefix("10.5.1.0/32"))})
		}},
	}
}

// needLink skips the test where the kernel has no such device type.
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

// needFOU skips the test where the kernel cannot carry the udp backend.
func needFOU(t *testing.T) {
	t.Helper()
	k, err := OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	ok, why, err := k.probeFOU(network(t, `{"Type":"udp","Carrier":"auto"}`))
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Skipf("NOT TESTED: %s", why)
	}
}
