package ctrl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ChooseIface picks the underlay interface of this network namespace. The error says what was tried and what exists.
func ChooseIface(o IfaceOptions, k *Kernel) (Iface, error) {
	v, err := k.view()
	if err != nil {
		return Iface{}, err
	}
	return choose(o, v, k.reach)
}

// view reads what the choice is made from.
func (k *Kernel) view() (netView, error) {
	s, err := k.read(func(string) bool { return false })
	if err != nil {
		return netView{}, err
	}
	v := netView{links: s.Links, routes: s.Routes}
	names := map[int]string{}
	for _, l := range s.Links {
		names[l.Index] = l.Name
	}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump("addresses", func() ([]netlink.Addr, error) { return k.h.AddrList(nil, fam) })
		if err != nil {
			return netView{}, err
		}
		for _, a := range addrs {
			v.addrs = append(v.addrs, ifaceAddr{
				dev: names[a.LinkIndex], addr: addrOf(a.IP),
				temporary:  fam == netlink.FAMILY_V6 && a.Flags&unix.IFA_F_TEMPORARY != 0,
				deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
				permanent:  a.Flags&unix.IFA_F_PERMANENT != 0,
			})
		}
	}
	return v, nil
}

// reach asks for the route to dst.
func (k *Kernel) reach(dst netip.Addr) (string, netip.Addr, error) {
	rs, err := dump("the route", func() ([]netlink.Route, error) { return k.h.RouteGet(dst.AsSlice()) })
	if err != nil {
		return "", netip.Addr{}, err
	}
	if len(rs) == 0 {
		return "", netip.Addr{}, errors.New("no route")
	}
	l, err := k.h.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("device of the route: %w", err)
	}
	return l.Attrs().Name, addrOf(rs[0].Src), nil
}

// WatchIface calls changed with the choice at the start and whenever it, its address or its MTU changes. If no interface
// fits for longer than a moment it calls changed once with the reason, and again with the choice when one does. It blocks
// until ctx ends, and returns an error only if the kernel cannot be watched. It works in the network namespace of the
// calling thread.
func WatchIface(ctx context.Context, o IfaceOptions, changed func(Iface, error)) error {
	k, err := OpenKernel()
	if err != nil {
		return err
	}
	defer k.Close()
	w := ifaceWatch{options: o, changed: changed, choose: func(o IfaceOptions) (Iface, error) { return ChooseIface(o, k) }}
	watch := func(ctx context.Context, changed func()) error { return k.watch(ctx, underlayEvent, changed) }
	return w.run(ctx, watch, ifaceTimer)
}

// ifaceTimer is how often the choice is made again without a sign from the kernel.
const ifaceTimer = 10 * time.Second
