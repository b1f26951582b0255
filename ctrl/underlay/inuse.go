package underlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// keep returns the interface in use if it is up and has its addresses. fresh and err are the choice
// that would be made without it. A link-local address stays only while there is no other.
func (c *chooser) keep(inUse, fresh Iface, err error) (Iface, bool) {
	l, ok := c.net.link(inUse.Name)
	if !ok || !l.Up {
		return Iface{}, false
	}
	i := Iface{Name: l.Name, Index: l.Index, Kind: l.Kind, MTU: c.mtu(l), Reason: inUse.Reason}
	for _, family := range []struct {
		on           bool
		inUse, fresh netip.Addr
		kept         *netip.Addr
	}{{c.o.IPv4, inUse.Addr, fresh.Addr, &i.Addr}, {c.o.IPv6, inUse.Addr6, fresh.Addr6, &i.Addr6}} {
		if !family.on {
			continue
		}
		a, ok := c.net.find(inUse.Name, family.inUse)
		if !ok || a.Duplicate || err == nil && downgrade(family.fresh, family.inUse) {
			return Iface{}, false
		}
		*family.kept = a.Addr
		i.rank |= rankOf(a)
	}
	switch {
	case err != nil:
		i.Note = "kept; a restart would find no interface: " + strings.Join(c.tried, ", ")
	case fresh.Name != i.Name || fresh.Addr != i.Addr || fresh.Addr6 != i.Addr6:
		i.Note = fmt.Sprintf("kept; a restart would choose %s (%s)", fresh.describe(), fresh.Reason)
	default:
		i.Note = fresh.Note
	}
	return i, true
}

// preferred lists the addresses in use that are worth keeping.
func preferred(inUse Iface) []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{inUse.Addr, inUse.Addr6}, netip.Addr.IsLinkLocalUnicast)
}

// successor chooses when the interface in use or one of its addresses is gone. The same interface
// with another address comes first, even without a default route. Neither a link-local address nor
// a virtual IP of the same interface replaces another address: other nodes do not expect the one,
// and the other may move to another node.
func (c *chooser) successor(inUse Iface) (Iface, error) {
	all := c.matches()
	if l, ok := c.net.link(inUse.Name); ok && l.Up && c.automatic() {
		if i, err := c.iface(inUse.Name); err == nil {
			i.Reason = inUse.Reason
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		return Iface{}, c.errNone()
	}
	i := all[0]
	for _, x := range all {
		if !setback(inUse, x) && x.rank&linkLocal == 0 {
			i = x
			break
		}
	}
	return i, c.acceptable(inUse, i)
}

// acceptable fails for a choice that must not replace the one in use.
func (c *chooser) acceptable(inUse, next Iface) error {
	if downgrade(inUse.Addr, next.Addr) || downgrade(inUse.Addr6, next.Addr6) {
		return fmt.Errorf("only link-local addresses left: %s (%s)", next.describe(), next.Reason)
	}
	if next.Name != inUse.Name || inUse.rank&single != 0 {
		return nil
	}
	for _, a := range []netip.Addr{next.Addr, next.Addr6} {
		if c.net.virtual(next.Name, a) && !slices.Contains(preferred(inUse), a) {
			return fmt.Errorf("only virtual IPs left: %s", next.describe())
		}
	}
	return nil
}

// setback reports whether next is another interface or another, worse address. Such a choice waits
// for the interface in use to recover.
func setback(inUse, next Iface) bool {
	if next.Name != inUse.Name {
		return true
	}
	return next.rank > inUse.rank && (next.Addr != inUse.Addr || next.Addr6 != inUse.Addr6)
}

// downgrade reports whether old is not link-local and next is.
func downgrade(old, next netip.Addr) bool {
	return old.IsValid() && !old.IsLinkLocalUnicast() && next.IsLinkLocalUnicast()
}

// describe returns name and addresses.
func (i Iface) describe() string {
	s := i.Name
	for _, a := range []netip.Addr{i.Addr, i.Addr6} {
		if a.IsValid() {
			s += " " + a.String()
		}
	}
	return s
}
