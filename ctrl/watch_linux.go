package ctrl

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls notify at the start, after each relevant change, and after lost messages (ENOBUFS),
// which may have been about anything. It blocks until ctx ends or the subscription breaks. It works
// in the network namespace of the calling thread.
func (k *Kernel) Watch(ctx context.Context, relevant func(Event) bool, notify func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("subscribe to netlink: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	watching, cancel := context.WithCancel(ctx)
	policies := make(chan struct{})
	go func() {
		defer close(policies)
		k.watchPolicies(watching, relevant, notify)
	}()
	defer func() {
		cancel()
		<-policies
	}()
	var names map[int]string
	for {
		if names == nil {
			if names, err = k.linkNames(); err != nil {
				return err
			}
			notify()
		}
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			names = nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("receive from netlink: %w", err)
		}
		for _, m := range msgs {
			if e, ok := parseEvent(m, names); ok && relevant(e) {
				notify()
			}
		}
	}
}

// linkNames returns the device names by index. It opens its own socket, because Watch runs
// concurrently with Read.
func (k *Kernel) linkNames() (map[int]string, error) {
	links, err := dump("devices", netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

// parseEvent converts a message and keeps names up to date. It skips a message that it cannot
// parse; the next resync finds that change.
func parseEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return linkEvent(m, names)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return Event{}, false
		}
		return Event{Kind: AddrEvent, Dev: names[int(nl.DeserializeIfAddrmsg(m.Data).Index)]}, true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeEvent(m, names)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return neighbourEvent(m, names)
	}
	return Event{}, false
}

func linkEvent(m syscall.NetlinkMessage, names map[int]string) (Event, bool) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return Event{}, false
	}
	index := int(nl.DeserializeIfInfomsg(m.Data).Index)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return Event{}, false
	}
	e := Event{Kind: LinkEvent, Dev: names[index]}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			e.Dev = unix.ByteSliceToString(a.Value)
		}
	}
	if m.Header.Type == unix.RTM_DELLINK {
		delete(names, index)
	} else if names != nil {
		names[index] = e.Dev
	}
	return e, true
}
