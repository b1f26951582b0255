package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Options of getsockopt and layouts of the structures of legacy iptables, from the kernel's
// linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h, linux/netfilter/x_tables.h.
const (
	soGetInfo    = 64
	soGetEntries = 65

	tableNameLen = 32                                  // XT_TABLE_MAXNAMELEN
	infoLen      = tableNameLen + 4 + 2*numHooks*4 + 8 // struct ipt_getinfo
	entriesHead  = tableNameLen + 8                    // struct ipt_get_entries, before the entries
	xtHead       = 32                                  // struct xt_entry_match and xt_entry_target
	xtNameLen    = 29                                  // XT_EXTENSION_MAXNAMELEN
	deviceLen    = 16                                  // IFNAMSIZ

	hookIndexPrerouting = 0 // NF_INET_PRE_ROUTING
	hookIndexInput      = 1 // NF_INET_LOCAL_IN
	hookIndexForward    = 2 // NF_INET_FORWARD
	hookIndexOutput     = 3 // NF_INET_LOCAL_OUT
	numHooks            = 5 // NF_INET_NUMHOOKS
)

// entryLayout holds the offsets of an entry's fields.
type entryLayout struct {
	addrLen, devices, protocol, flags, inverted int
	targetAt, size                              int // target_offset, sizeof
}

func layoutOf(f family) entryLayout {
	if f == ipv4 {
		return entryLayout{addrLen: 4, devices: 16, protocol: 80, flags: 82, inverted: 83,
			targetAt: 88, size: 112}
	}
	return entryLayout{addrLen: 16, devices: 64, protocol: 128, flags: 131, inverted: 132,
		targetAt: 140, size: 168}
}

// legacyTable is a table of legacy iptables as the kernel holds it. It is read without a program.
type legacyTable struct {
	family  family
	info    []byte // struct ipt_getinfo
	entries []byte
}

// readLegacyTable reads a table. It returns nil if the kernel does not have it yet, since asking
// for a table creates it.
func readLegacyTable(f family, table string) (*legacyTable, error) {
	if !hasLegacyTable(f, table) {
		return nil, nil
	}
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if f == ipv6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	defer unix.Close(fd)
	for range maxAttempts {
		info := make([]byte, infoLen)
		copy(info, table)
		if err := getsockopt(fd, level, soGetInfo, info); err != nil {
			return nil, fmt.Errorf("read table %s: %w", table, err)
		}
		size := binary.NativeEndian.Uint32(info[infoLen-4:])
		entries := make([]byte, entriesHead+int(size))
		copy(entries, table)
		binary.NativeEndian.PutUint32(entries[tableNameLen:], size)
		err = getsockopt(fd, level, soGetEntries, entries)
		if err == nil {
			return &legacyTable{f, info, entries[entriesHead:]}, nil
		}
		if !errors.Is(err, unix.EAGAIN) { // another program changed the table in between
			break
		}
	}
	return nil, fmt.Errorf("read rules of table %s: %w", table, err)
}

// getsockopt calls getsockopt with a buffer that is also input.
func getsockopt(fd, level, option int, buf []byte) error {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// traced returns a built-in chain for a trace. The chain's policy is its last rule.
func (t *legacyTable) traced(name string, hookIndex int) (tracedChain, error) {
	chains, err := t.chains(t.hookStart(hookIndex), name)
	return tracedChain{
		name:  name,
		rules: func(chain string) ([]filterRule, error) { return chains[chain], nil },
	}, err
}

// hookStart returns the offset of the first rule of a built-in chain.
func (t *legacyTable) hookStart(hookIndex int) int {
	const hookEntries = tableNameLen + 4
	return int(binary.NativeEndian.Uint32(t.info[hookEntries+4*hookIndex:]))
}

// isHook reports whether a built-in chain starts at an offset.
func (t *legacyTable) isHook(at int) bool {
	for i := range numHooks {
		if t.hookStart(i) == at {
			return true
		}
	}
	return false
}

// errBadTable reports entries whose layout is not the expected one.
var errBadTable = errors.New("unexpected layout of legacy iptables rules")

// chains returns the rules of the built-in chain that starts at an offset, under the given name,
// and of all other chains, under the offsets of their first rules.
func (t *legacyTable) chains(start int, name string) (map[string][]filterRule, error) {
	l := layoutOf(t.family)
	chains := map[string][]filterRule{}
	chain := ""
	for at := 0; at < len(t.entries); {
		e := t.entries[at:]
		if len(e) < l.size {
			return nil, errBadTable
		}
		target := int(binary.NativeEndian.Uint16(e[l.targetAt:]))
		next := int(binary.NativeEndian.Uint16(e[l.targetAt+2:]))
		if target < l.size || next < target+xtHead || next > len(e) {
			return nil, errBadTable
		}
		switch {
		case at == start:
			chain = name
		case t.isHook(at):
			chain = ""
		}
		if cString(e[target+2:target+2+xtNameLen]) == "ERROR" { // head of a user's chain
			chain = offsetName(at + next)
		} else {
			r := t.rule(e[:next], l, target)
			if r.to == offsetName(at+next) { // a rule without a target
				r.action = actionContinue
			}
			r.number = len(chains[chain]) + 1
			chains[chain] = append(chains[chain], r)
		}
		at += next
	}
	return chains, nil
}

// offsetName returns the name that chains gives the chain whose first rule has an offset.
func offsetName(offset int) string { return fmt.Sprintf("+%d", offset) }

// rule translates one entry.
func (t *legacyTable) rule(e []byte, l entryLayout, target int) filterRule {
	var r filterRule
	inverted := e[l.inverted]
	addr := func(i int) addrMatch {
		a, _ := netip.AddrFromSlice(e[i*l.addrLen : (i+1)*l.addrLen])
		m := e[(i+2)*l.addrLen : (i+3)*l.addrLen]
		bits := leadingOnes(m)
		if !bytes.Equal(m, prefixMask(bits, len(m))) {
			r.unknown = true
		} else if bits > 0 {
			return addrMatch{prefix: netip.PrefixFrom(a, bits), not: inverted&(8<<i) != 0}
		}
		return addrMatch{}
	}
	r.src, r.dst = addr(0), addr(1)
	for i, in := range []bool{true, false} {
		if device := e[l.devices+i*deviceLen:][:deviceLen]; device[0] != 0 {
			r.matchDevice(device, in, inverted&(1<<i) != 0)
		}
	}
	r.protocol = uint8(binary.NativeEndian.Uint16(e[l.protocol:]))
	const otherInversions = 0x20 | 0x40 | 0x04 // fragment, protocol, TOS
	r.unknown = r.unknown || inverted&otherInversions != 0
	t.matches(&r, e[l.size:target])
	r.legacyTarget(e[target:])
	const isGoto = 2 // IPT_F_GOTO
	if r.action == actionJump && e[l.flags]&isGoto != 0 {
		r.action = actionGoto
	}
	return r
}

// matches adds the conditions of an entry's matches.
func (t *legacyTable) matches(r *filterRule, b []byte) {
	for len(b) >= xtHead {
		size := int(binary.NativeEndian.Uint16(b))
		if size < xtHead || size > len(b) {
			r.unknown = true
			return
		}
		name, revision := cString(b[2:2+xtNameLen]), uint32(b[2+xtNameLen])
		info, err := xt.Unmarshal(name, xt.TableFamily(nftFamily(t.family)), revision, b[xtHead:size])
		if err != nil {
			r.unknown = true
		} else {
			r.match(name, info)
		}
		b = b[size:]
	}
}

// legacyTarget sets the action from struct xt_entry_target.
func (r *filterRule) legacyTarget(b []byte) {
	name := cString(b[2 : 2+xtNameLen])
	if name != "" || len(b) < xtHead+4 {
		r.action = targetAction(name)
		r.tracking = targetTracking(name, b[min(xtHead, len(b)):])
		return
	}
	const accept, drop, ret = -2, -1, -5 // -NF_ACCEPT - 1, -NF_DROP - 1, XT_RETURN
	switch v := int32(binary.NativeEndian.Uint32(b[xtHead:])); {
	case v == accept:
		r.action = actionAccept
	case v == drop:
		r.action = actionDrop
	case v == ret:
		r.action = actionReturn
	case v >= 0:
		r.action, r.to = actionJump, offsetName(int(v))
	}
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// leadingOnes returns the number of leading one bits.
func leadingOnes(mask []byte) int {
	n := 0
	for _, b := range mask {
		for bit := byte(0x80); bit != 0; bit >>= 1 {
			if b&bit == 0 {
				return n
			}
			n++
		}
	}
	return n
}
