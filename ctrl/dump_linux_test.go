package ctrl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// slowRoutes is Kernel.routes by the netlink library.
func slowRoutes(t *testing.T, k *Kernel, fam int, names map[int]string) (out []Route) {
	t.Helper()
	filter := netlink.Route{Table: unix.RT_TABLE_MAIN}
	all, err := k.h.RouteListFiltered(fam, &filter, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		kind, ok := routeKind(r.Type)
		if !ok || r.Dst == nil {
			continue
		}
		v := Route{Kind: kind, Dst: prefixOf(r.Dst), Via: addrOf(r.Gw), Dev: names[r.LinkIndex],
			Metric: r.Priority, Protocol: int(r.Protocol), OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0}
		if fam == netlink.FAMILY_V4 {
			v.Scope = uint8(r.Scope)
		}
		v = v.normal()
		if len(r.MultiPath) == 0 {
			out = append(out, v)
		}
		for _, hop := range r.MultiPath {
			v.Via, v.Dev, v.OnLink = addrOf(hop.Gw), names[hop.LinkIndex], hop.Flags&int(netlink.FLAG_ONLINK) != 0
			out = append(out, v)
		}
	}
	return out
}

// TestNetnsRoutesTwin reads routes of all kinds, and compares them with the netlink library's.
func TestNetnsRoutesTwin(t *testing.T) {
	addBridge(t, "under0", "172.20.0.1/24", "fd20::1/64")
	addBridge(t, "under1", "172.21.0.1/24")
	added := []string{
		"10.1.0.0/24 via 172.20.0.2", "10.2.0.0/24 via 172.99.0.1 dev under0 onlink", "10.3.0.0/24 dev under0",
		"10.4.0.0/24 via 172.20.0.2 scope 7 proto 157", "10.5.0.0/24 via 172.20.0.2 metric 30",
		"blackhole 10.6.0.0/24", "unreachable 10.7.0.0/24", "prohibit 10.8.0.0/24", "throw 10.9.0.0/24",
		"10.10.0.0/24 nexthop via 172.20.0.2 nexthop via 172.21.0.2 dev under1 weight 2",
		"10.11.0.0/24 via 172.20.0.2 table 99", "10.12.0.0/24 via inet6 fd20::2 dev under0", "default via 172.20.0.9",
		"fd10:1::/64 via fd20::2", "fd10:2::/64 dev under0 metric 7", "blackhole fd10:3::/64",
		"fd10:4::/64 nexthop via fd20::2 nexthop via fd20::3",
	}
	for _, r := range added {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", "ip route add "+r).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", r, err, out)
		}
	}
	k := open(t)
	names, err := k.linkNames()
	if err != nil {
		t.Fatal(err)
	}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		got, err := k.routes(fam, names, func(Route) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		want := slowRoutes(t, k, fam, names)
		text := func(all []Route) (lines []string) {
			for _, r := range all {
				lines = append(lines, fmt.Sprintf("%+v", r))
			}
			slices.Sort(lines)
			return lines
		}
		if g, w := text(got), text(want); !slices.Equal(g, w) || len(w) < 4 {
			t.Errorf("family %d:\n got %q\nwant %q", fam, g, w)
		}
	}
}

func TestDoneError(t *testing.T) {
	for _, test := range []struct {
		data []byte
		want error
	}{
		{nil, nil},
		{make([]byte, 4), nil},
		{binary.NativeEndian.AppendUint32(nil, ^uint32(unix.ENOMEM)+1), unix.ENOMEM},
	} {
		if err := doneError(test.data); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%v: got %v, want %v", test.data, err, test.want)
		}
	}
}

// attribute returns a netlink attribute.
func attribute(typ uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), value...)
	return append(b, make([]byte, -len(b)&(unix.RTA_ALIGNTO-1))...)
}

func FuzzRoute(f *testing.F) {
	head := []byte{unix.AF_INET, 24, 0, 0, unix.RT_TABLE_MAIN, 3, 0, unix.RTN_UNICAST, 0, 0, 0, 0}
	hop := slices.Concat([]byte{16, 0, 0, 0, 1, 0, 0, 0}, attribute(unix.RTA_GATEWAY, 172, 20, 0, 2))
	f.Add(head)
	f.Add(slices.Concat(head, attribute(unix.RTA_DST, 10, 1, 2, 0), attribute(unix.RTA_OIF, 1, 0, 0, 0)))
	f.Add(slices.Concat(head, attribute(unix.RTA_MULTIPATH, slices.Concat(hop, hop)...)))
	f.Add(slices.Concat(head, attribute(unix.RTA_PRIORITY, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		names := map[int]string{1: "under0"}
		r, ok := parseRoute(b, names)
		if ok && (len(b) < unix.SizeofRtMsg || r.Dst.Addr() != r.Dst.Addr().Unmap()) {
			t.Errorf("%x: route %+v", b, r)
		}
		if ok && r.simple && len(r.routes(names)) != 1 {
			t.Errorf("%x: %d routes of a simple one", b, len(r.routes(names)))
		}
		routeEvent(syscall.NetlinkMessage{Data: b}, names)
		if !bytes.Equal(b, before) {
			t.Error("the message was changed")
		}
	})
}

// FuzzNeighbour compares with the netlink library.
func FuzzNeighbour(f *testing.F) {
	head := []byte{unix.AF_INET, 0, 0, 0, 7, 0, 0, 0, netlink.NUD_PERMANENT, 0, 0, 0}
	entry := []byte{unix.AF_BRIDGE, 0, 0, 0, 7, 0, 0, 0, netlink.NUD_PERMANENT, 0, netlink.NTF_SELF, 0}
	rest := slices.Concat(attribute(netlink.NDA_DST, 10, 1, 2, 3), attribute(netlink.NDA_LLADDR, 2, 0, 0, 0, 0, 9))
	f.Add(slices.Concat(head, rest))
	f.Add(slices.Concat(entry, rest))
	f.Add(head)
	f.Add(head[:5])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := parseNeighbour(b)
		want, err := libraryNeighbour(b)
		if err != nil || !ok {
			return // the library refuses attributes that are cut off, at which this one ends
		}
		if got.index != want.LinkIndex || got.permanent != (want.State&netlink.NUD_PERMANENT != 0) {
			t.Errorf("%x: %+v, the library has %+v", b, got, want)
		}
		if n, isNeighbour := got.object.(Neighbour); isNeighbour && n.IP != addrOf(want.IP) {
			t.Errorf("%x: %+v, the library has %+v", b, got, want)
		}
	})
}

// libraryNeighbour decodes a message with the netlink library, whose panics for short messages are
// errors.
func libraryNeighbour(b []byte) (n *netlink.Neigh, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return netlink.NeighDeserialize(b)
}
