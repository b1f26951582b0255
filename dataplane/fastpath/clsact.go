//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// filterHandle and filterPriority are those of the filters. The lowest priority runs first.
	filterHandle, filterPriority = 1, 1
	// filterName precedes the names of the filters: weft/inbound/flannel0.
	filterName = "weft/"
)

// filter is a program that is attached with clsact. It needs no pin: it stays until it or its
// interface is deleted.
type filter struct {
	place
	routes *netlink.Handle // of the interface's network namespace
}

func (at place) newFilter() (filter, error) {
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return filter{}, fmt.Errorf("open netlink socket: %w", err)
	}
	return filter{at, routes}, nil
}

// name identifies the filter among those of others.
func (at place) name() string { return filterName + at.kind.String() + "/" + at.device }

// parent is the number of the list of filters.
func (k hookKind) parent() uint32 {
	if k == hookOutbound {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func linkOf(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// adoptFilter is adopt for clsact.
func (at place) adoptFilter() (hook, error) {
	all, err := listFilters()
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		if f.Name != at.name() || f.LinkIndex == at.target {
			continue
		}
		if err := netlink.FilterDel(f); err != nil {
			return nil, fmt.Errorf("delete filter %s: %w", f.Name, err)
		}
	}
	f, err := at.newFilter()
	if err != nil {
		return nil, err
	}
	if f.isOn(at.target) {
		return f, nil
	}
	return nil, f.close()
}

// attachFilter is attach for clsact.
func (at place) attachFilter(p *ebpf.Program) (hook, error) {
	f, err := at.newFilter()
	if err != nil {
		return nil, err
	}
	if err := f.add(p); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// add adds the filter, and clsact to the interface if it has none.
func (f filter) add(p *ebpf.Program) error {
	err := f.routes.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: f.target, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: no TCX (Linux 6.6); add clsact: %w", ErrUnsupported, err)
	}
	if err := f.findOther(0); err != nil {
		return err
	}
	if err := f.update(p); err != nil {
		return fmt.Errorf("%w: no TCX (Linux 6.6); attach %s program: %w", ErrUnsupported, f.kind, err)
	}
	return nil
}

func (f filter) update(p *ebpf.Program) error {
	return f.routes.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: f.target, Parent: f.kind.parent(),
			Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Fd: p.FD(), Name: f.name(), DirectAction: true,
	})
}

func (f filter) isOn(target int) bool {
	list, err := f.routes.FilterList(linkOf(target), f.kind.parent())
	for _, found := range list {
		if b, ok := found.(*netlink.BpfFilter); err == nil && ok && b.Name == f.name() {
			return true
		}
	}
	return false
}

func (filter) lasts() bool { return true }

func (f filter) close() error {
	f.routes.Close()
	return nil
}

// listFilters returns the filters of this package in the calling thread's network namespace.
func listFilters() (ours []*netlink.BpfFilter, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range all {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			list, err := netlink.FilterList(linkOf(i.Index), parent)
			if err != nil {
				return ours, fmt.Errorf("list filters of %s: %w", i.Name, err)
			}
			for _, f := range list {
				if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterName) {
					ours = append(ours, b)
				}
			}
		}
	}
	return ours, nil
}

// removeFilters deletes the filters of the devices that remove selects, and returns the devices.
func removeFilters(remove func(device string) bool) (devices []string, err error) {
	all, err := listFilters()
	errs := []error{err}
	for _, f := range all {
		device := f.Name[strings.LastIndexByte(f.Name, '/')+1:]
		if !remove(device) {
			continue
		}
		if err := netlink.FilterDel(f); err != nil {
			errs = append(errs, fmt.Errorf("delete filter %s: %w", f.Name, err))
		} else if !slices.Contains(devices, device) {
			devices = append(devices, device)
		}
	}
	return devices, errors.Join(errs...)
}
