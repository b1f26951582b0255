package netfilter

import (
	"os"
	"path/filepath"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/xt"
)

// matchedDevice returns the condition that the packet comes or leaves by a device. A packet from
// another node or from the router never comes by the loopback device, or by a bridge of containers.
func matchedDevice(name string, in, not bool) deviceMatch {
	return deviceMatch{name: name, not: not, never: name == "lo" || in && isPodBridge(name)}
}

// matchDevice adds the condition of a comparison with a device's name. nftables compares a shorter
// field for a prefix, without the final NUL.
func (r *filterRule) matchDevice(data []byte, in, not bool) {
	name := cString(data)
	if len(name) == len(data) && len(data) < deviceLen {
		name += "+"
	}
	m := &r.out
	if in {
		m = &r.in
	}
	r.unknown = r.unknown || m.name != "" // two conditions on one device
	*m = matchedDevice(name, in, not)
}

// isPodBridge reports whether a device is a bridge without a port that is a physical device, as
// those of container runtimes are.
func isPodBridge(name string) bool {
	ports, err := filepath.Glob(filepath.Join("/sys/class/net", filepath.Base(name), "brif", "*"))
	if err != nil || !isBridge(name) {
		return false
	}
	for _, p := range ports {
		if _, err := os.Stat(filepath.Join("/sys/class/net", filepath.Base(p), "device")); err == nil {
			return false
		}
	}
	return true
}

func isBridge(name string) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", filepath.Base(name), "bridge"))
	return err == nil
}

// match adds the condition of an xtables match.
func (r *filterRule) match(name string, info xt.InfoAny) {
	switch i := info.(type) {
	case *xt.Comment:
		return
	case *xt.ConntrackMtinfo1:
		r.matchConntrack(i.ConntrackMtinfoBase, uint32(i.StateMask))
		return
	case *xt.ConntrackMtinfo2:
		r.matchConntrack(i.ConntrackMtinfoBase, uint32(i.StateMask))
		return
	case *xt.ConntrackMtinfo3:
		r.matchConntrack(i.ConntrackMtinfoBase, uint32(i.StateMask))
		return
	case *xt.Tcp:
		if i.InvFlags&^xt.TcpInvDestPorts == 0 && i.FlagsMask == 0 && i.Option == 0 &&
			r.matchPorts(i.SrcPorts, i.DstPorts, i.InvFlags != 0) {
			return
		}
	case *xt.Udp:
		if i.InvFlags&^xt.UdpInvDestPorts == 0 &&
			r.matchPorts(i.SrcPorts, i.DstPorts, i.InvFlags != 0) {
			return
		}
	case *xt.Unknown:
		if r.matchUnknown(name, *i) {
			return
		}
	}
	r.unknown = true
}

// matchPorts adds the condition of `-m tcp` or `-m udp`. It reports false for source ports, which
// traced packets do not have.
func (r *filterRule) matchPorts(src, dst [2]uint16, not bool) bool {
	const last = 1<<16 - 1
	if src != [2]uint16{0, last} || r.ports != nil {
		return false
	}
	if dst == [2]uint16{0, last} && !not {
		return true
	}
	r.ports = portsBut(portRange{dst[0], dst[1]}, not)
	return true
}

// portsBut returns the range, or all ports outside it.
func portsBut(x portRange, not bool) []portRange {
	if !not {
		return []portRange{x}
	}
	outside := []portRange{}
	if x.first > 0 {
		outside = append(outside, portRange{0, x.first - 1})
	}
	if x.last < 1<<16-1 {
		outside = append(outside, portRange{x.last + 1, 1<<16 - 1})
	}
	return outside
}

// matchConntrack adds the condition of `-m conntrack`.
func (r *filterRule) matchConntrack(i xt.ConntrackMtinfoBase, states uint32) {
	const state = uint16(xt.ConntrackState)
	if i.MatchFlags&state != 0 {
		if r.states = states; i.InvertFlags&state != 0 {
			r.states = ^states
		}
	}
	if i.MatchFlags&^(state|uint16(xt.ConntrackStateAlias)) != 0 {
		r.unknown = true
	}
}

// matchUnknown adds the condition of a match that the library does not parse. It reports false if
// this function does not either.
func (r *filterRule) matchUnknown(name string, info []byte) bool {
	switch {
	case name == "state" && len(info) >= 4: // struct xt_state_info
		r.states = binaryutil.NativeEndian.Uint32(info)
	case (name == "icmp" || name == "icmp6") && len(info) >= 4: // struct ipt_icmp
		const anyType = 0xff // with iptables
		typ, inverted := info[0], info[3] != 0
		if inverted {
			return false
		}
		if name != "icmp" || typ != anyType {
			r.icmpTypes = []uint8{typ}
		}
	default:
		return false
	}
	return true
}

// targetAction returns the action of an xtables target that is not a verdict.
func targetAction(name string) filterAction {
	if name == "REJECT" {
		return actionDrop
	}
	return actionContinue
}
