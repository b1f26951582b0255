package ctrl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// xfrm is the kernel's IPsec configuration. Asking for it loads a kernel module, so it is left
// alone until a plan has a policy or the module is there.
type xfrm struct {
	once sync.Once
	used chan struct{} // closed once it is in use
}

func newXFRM() xfrm { return xfrm{used: make(chan struct{})} }

func (x *xfrm) use() { x.once.Do(func() { close(x.used) }) }

// present reports whether it can be asked without loading the module.
func (x *xfrm) present() (bool, error) {
	select {
	case <-x.used:
		return true, nil
	default:
	}
	f, err := os.Open("/proc/thread-self/net/netlink")
	if err != nil {
		return false, fmt.Errorf("list netlink protocols: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// The second field is the protocol, the third the port: 0 is the kernel's own socket.
		fields := strings.Fields(lines.Text())
		if len(fields) > 2 && fields[1] == fmt.Sprint(unix.NETLINK_XFRM) && fields[2] == "0" {
			x.use()
			return true, nil
		}
	}
	return false, lines.Err()
}

// readPolicies adds the policies of both families.
func (k *Kernel) readPolicies(s *State) error {
	present, err := k.xfrm.present()
	if !present || err != nil {
		return err
	}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := dump("IPsec policies", func() ([]netlink.XfrmPolicy, error) {
			return k.h.XfrmPolicyList(fam)
		})
		if errors.Is(err, unix.EPERM) {
			return nil // a tool without privileges, which may read the rest
		}
		if err != nil {
			return err
		}
		for _, p := range all {
			if v, ok := policyValue(p); ok {
				s.Policies = append(s.Policies, v)
			}
		}
	}
	return nil
}

// directions maps the kernel's directions; those of sockets are omitted.
func directions() map[netlink.Dir]Direction {
	return map[netlink.Dir]Direction{netlink.XFRM_DIR_OUT: Out, netlink.XFRM_DIR_IN: In,
		netlink.XFRM_DIR_FWD: Through}
}

// policyValue converts a policy. ok is false for one that never meets a wanted one: of a socket, a
// mark, an interface, a protocol or a port.
func policyValue(p netlink.XfrmPolicy) (v Policy, ok bool) {
	dir, ok := directions()[p.Dir]
	if !ok || p.Dst == nil || p.Src == nil || p.Mark != nil || p.Ifid != 0 || p.Ifindex != 0 ||
		p.Proto != 0 || p.SrcPort != 0 || p.DstPort != 0 {
		return Policy{}, false
	}
	v = Policy{Dir: dir, Src: prefixOf(p.Src), Dst: prefixOf(p.Dst), Priority: p.Priority}
	if len(p.Tmpls) == 1 && p.Action == netlink.XFRM_POLICY_ALLOW {
		if t := p.Tmpls[0]; t.Proto == netlink.XFRM_PROTO_ESP && t.Mode == netlink.XFRM_MODE_TUNNEL &&
			t.Optional == 0 && t.Spi == 0 {
			v.TunnelSrc, v.TunnelDst, v.ReqID = addrOf(t.Src), addrOf(t.Dst), t.Reqid
		}
	}
	return v, true
}

// applyPolicy sets or deletes a policy.
func (k *Kernel) applyPolicy(v Verb, p Policy) error {
	k.xfrm.use()
	n := &netlink.XfrmPolicy{Src: ipNet(p.Src), Dst: ipNet(p.Dst), Priority: p.Priority}
	for dir, value := range directions() {
		if value == p.Dir {
			n.Dir = dir
		}
	}
	if v == Delete {
		if err := k.h.XfrmPolicyDel(n); !isNotFound(err) {
			return err
		}
		return nil
	}
	n.Tmpls = []netlink.XfrmPolicyTmpl{{Src: p.TunnelSrc.AsSlice(), Dst: p.TunnelDst.AsSlice(),
		Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Reqid: p.ReqID}}
	err := k.h.XfrmPolicyUpdate(n)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: the kernel has no IPsec (module xfrm_user)", err)
	}
	return err
}

// deleteAssociations deletes the security associations of two tunnel ends, both ways.
func (k *Kernel) deleteAssociations(a Association) error {
	all, err := dump("security associations", func() ([]netlink.XfrmState, error) {
		return k.h.XfrmStateList(int(family4or6(a.Local)))
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		ends := tunnelEnds{addrOf(s.Src), addrOf(s.Dst)}
		if s.Reqid != PolicyReqID || s.Proto != netlink.XFRM_PROTO_ESP ||
			ends != a.ends() && ends != (tunnelEnds{a.Remote, a.Local}) {
			continue
		}
		if err := k.h.XfrmStateDel(&s); err != nil && !isNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// watchPolicies reports changes of IPsec policies once the kernel has any, until ctx ends.
func (k *Kernel) watchPolicies(ctx context.Context, relevant func(Event) bool, notify func()) {
	select {
	case <-ctx.Done():
		return
	case <-k.xfrm.used:
	}
	for ctx.Err() == nil {
		// The next comparison finds what is missed in between.
		if err := receivePolicies(ctx, relevant, notify); err != nil {
			notify()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func receivePolicies(ctx context.Context, relevant func(Event) bool, notify func()) error {
	s, err := nl.Subscribe(unix.NETLINK_XFRM, nl.XFRMNLGRP_POLICY)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			notify()
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		}
		if len(msgs) > 0 && relevant(Event{Kind: PolicyEvent}) {
			notify()
		}
	}
}
