package ctrl

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// texts returns the operations as strings, for comparison.
func texts(ops []Op) []string {
	var s []string
	for _, o := range ops {
		s = append(s, o.String())
	}
	return s
}

var (
	nets = []netip.Prefix{prefix("10.5.0.0/16"), prefix("fd10:5::/48")}
	eth0 = Link{Name: "eth0", Index: 2, MTU: 1500, Up: true}
	macA = MAC{2, 0, 0, 0, 0, 0xa}
	macB = MAC{2, 0, 0, 0, 0, 0xb}
)

func vx(change func(*Link)) Link {
	l := Link{Name: "flannel.1", Kind: KindVXLAN, MTU: 1450, MAC: macA, Up: true, AcceptRAOff: true,
		VXLAN: VXLAN{VNI: 1, Port: 8472, Local: addr("172.31.0.1"), Parent: "eth0"}}
	if change != nil {
		change(&l)
	}
	return l
}

func ours(dst, via, dev string) Route {
	r := Route{Dst: prefix(dst), Dev: dev, Protocol: RouteProtocol}
	if via != "" {
		r.Via = addr(via)
	}
	return r
}

func proto(r Route, p int) Route { r.Protocol = p; return r }

// vxlanWant returns a wanted state with one of each object that a VXLAN peer needs.
func vxlanWant() State {
	r := ours("10.5.2.0/24", "10.5.2.0", "flannel.1")
	r.OnLink = true
	return State{
		Networks:   nets,
		Links:      []Link{vx(nil)},
		Addrs:      []Addr{{"flannel.1", prefix("10.5.1.0/32")}},
		Neighbours: []Neighbour{{"flannel.1", addr("10.5.2.0"), macB}},
		FDB:        []FDBEntry{{"flannel.1", macB, addr("172.31.0.2")}},
		Routes:     []Route{r},
	}
}

// vxlanHave returns a kernel state with vxlanWant in place, among many foreign objects.
func vxlanHave() State {
	s := vxlanWant()
	s.Networks = nil
	s.Links = append(s.Links, eth0, Link{Name: "cni0", Kind: "bridge", Up: true})
	s.Addrs = append(s.Addrs, Addr{"eth0", prefix("172.31.0.1/24")}, Addr{"cni0", prefix("10.5.1.1/24")},
		Addr{"flannel.1", prefix("fe80::1/64")})
	s.Routes = append(s.Routes, proto(ours("0.0.0.0/0", "172.31.0.254", "eth0"), protocolBoot),
		proto(ours("10.5.1.0/24", "", "cni0"), 2), ours("192.168.9.0/24", "172.31.0.9", "eth0"))
	return s
}

func TestDiff(t *testing.T) {
	boot := func(r Route) Route { return proto(r, protocolBoot) }
	tests := []struct {
		name      string
		have      func(*State)
		want      func(*State)
		ops       []string
		waiting   []string
		conflicts []string
	}{
		{name: "in place: nothing, and nothing of others"},
		{
			name: "first programming",
			have: func(s *State) { *s = State{Links: []Link{eth0}} },
			ops: []string{
				"create device flannel.1 type vxlan mtu 1450 address 02:00:00:00:00:0a accept_ra 0 up",
				"replace address 10.5.1.0/32 dev flannel.1",
				"replace neighbour 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:00:0b",
				"replace fdb 02:00:00:00:00:0b dev flannel.1 dst 172.31.0.2",
				"replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink",
			},
		},
		{
			name: "device down",
			have: func(s *State) { s.Links[0].Up = false },
			ops:  []string{"change device flannel.1 up"},
		},
		{
			name: "device changed",
			have: func(s *State) {
				s.Links[0].MTU, s.Links[0].MAC, s.Links[0].AcceptRAOff = 1500, macB, false
			},
			ops: []string{"change device flannel.1 mtu 1450 address 02:00:00:00:00:0a accept_ra 0"},
		},
		{
			name: "fixed setting changed: device and its objects recreated",
			have: func(s *State) { s.Links[0].VXLAN.Port = 4789 },
			ops: []string{
				"delete device flannel.1 type vxlan",
				"create device flannel.1 type vxlan mtu 1450 address 02:00:00:00:00:0a accept_ra 0 up",
				"replace address 10.5.1.0/32 dev flannel.1",
				"replace neighbour 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:00:0b",
				"replace fdb 02:00:00:00:00:0b dev flannel.1 dst 172.31.0.2",
				"replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink",
			},
		},
		{
			name:      "our name on a device of another kind",
			have:      func(s *State) { s.Links[0] = Link{Name: "flannel.1", Kind: "dummy", Up: true} },
			conflicts: []string{`device flannel.1 has type "dummy", want "vxlan"`},
		},
		{
			name: "node's address and MAC changed",
			have: func(s *State) {
				s.FDB[0].Dst = addr("172.31.0.77")
				s.Neighbours[0].MAC = macA
			},
			ops: []string{
				"replace neighbour 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:00:0b",
				"replace fdb 02:00:00:00:00:0b dev flannel.1 dst 172.31.0.2",
			},
		},
		{
			name: "node gone: route first, entries last",
			want: func(s *State) { s.Routes, s.Neighbours, s.FDB = nil, nil, nil },
			ops: []string{
				"delete route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink",
				"delete neighbour 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:00:0b",
				"delete fdb 02:00:00:00:00:0b dev flannel.1 dst 172.31.0.2",
			},
		},
		{
			name: "our subnet changed: new address before the old one goes",
			want: func(s *State) { s.Addrs[0].Prefix = prefix("10.5.7.0/32") },
			ops:  []string{"replace address 10.5.7.0/32 dev flannel.1", "delete address 10.5.1.0/32 dev flannel.1"},
		},
		{
			name: "unwanted own routes are deleted",
			have: func(s *State) {
				s.Routes = append(s.Routes, ours("10.5.9.0/24", "172.31.0.9", "eth0"),
					boot(ours("10.5.8.0/24", "10.5.8.0", "flannel.1")))
			},
			ops: []string{"delete route 10.5.9.0/24 via 172.31.0.9 dev eth0 proto 157",
				"delete route 10.5.8.0/24 via 10.5.8.0 dev flannel.1 proto 3"},
		},
		{
			name: "flannel's host-gw route to a node goes, a hand-made one stays",
			have: func(s *State) {
				s.Routes = append(s.Routes, boot(ours("10.5.3.0/24", "172.31.0.3", "eth0")),
					boot(ours("10.5.4.0/24", "172.31.0.99", "eth0")))
			},
			want: func(s *State) { s.FlannelRoutes = []FlannelRoute{{prefix("10.5.3.0/24"), addr("172.31.0.3")}} },
			ops:  []string{"delete route 10.5.3.0/24 via 172.31.0.3 dev eth0 proto 3"},
		},
		{
			name: "flannel's route in our place is taken over",
			have: func(s *State) { s.Routes[0].Protocol = protocolBoot },
			ops:  []string{"replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink"},
		},
		{
			name: "the same by someone else is as good",
			have: func(s *State) { s.Routes[0].Protocol = 4 },
		},
		{
			name: "another route in our place is not ours to remove",
			have: func(s *State) { s.Routes[0] = proto(ours("10.5.2.0/24", "", "cni0"), 2) },
			conflicts: []string{
				"route 10.5.2.0/24 dev cni0 proto 2 blocks route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink"},
		},
		{
			name: "one next hop of several",
			have: func(s *State) { s.Routes = append(s.Routes, ours("10.5.2.0/24", "172.31.0.3", "eth0")) },
			ops: []string{"delete route 10.5.2.0/24 via 172.31.0.3 dev eth0 proto 157",
				"replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink"},
		},
		{
			name: "a refusal in our place is not ours to remove, by hand or not",
			have: func(s *State) {
				s.Routes[0] = Route{Dst: prefix("10.5.2.0/24"), Kind: "prohibit", Protocol: protocolBoot}
				s.Routes = append(s.Routes, Route{Dst: prefix("10.5.3.0/24"), Kind: Blackhole, Protocol: 4})
			},
			want: func(s *State) { s.Routes = append(s.Routes, ours("10.5.3.0/24", "172.31.0.3", "eth0")) },
			conflicts: []string{
				"route prohibit 10.5.2.0/24 proto 3 blocks route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink",
				"route blackhole 10.5.3.0/24 proto 4 blocks route 10.5.3.0/24 via 172.31.0.3 dev eth0 proto 157"},
		},
		{
			name: "flannel's blackhole of a subnet that is another node's now is taken over",
			have: func(s *State) {
				s.Routes[0] = Route{Dst: prefix("10.5.2.0/24"), Kind: Blackhole, Protocol: protocolBoot}
			},
			ops: []string{"replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink"},
		},
		{
			name: "a route with another metric is not in the way",
			have: func(s *State) {
				r := proto(ours("10.5.2.0/24", "172.31.0.254", "eth0"), 4)
				r.Metric = 100
				s.Routes = append(s.Routes, r)
			},
		},
		{
			name: "the engine's device is awaited, with all that stands on it",
			want: func(s *State) {
				*s = State{Networks: nets, Links: []Link{{Name: "flannel0", Kind: KindTUN, MTU: 1472, TxQueueLen: 5000,
					Up: true, External: true}},
					Addrs:  []Addr{{"flannel0", prefix("10.5.1.0/32")}},
					Routes: []Route{ours("10.5.0.0/16", "", "flannel0")}}
			},
			have:    func(s *State) { *s = State{Links: []Link{eth0}} },
			waiting: []string{"flannel0"},
		},
		{
			name: "the engine's device is set up",
			want: func(s *State) {
				*s = State{Networks: nets, Links: []Link{{Name: "flannel0", Kind: KindTUN, MTU: 1472, TxQueueLen: 5000,
					Up: true, External: true}},
					Routes: []Route{ours("10.5.0.0/16", "", "flannel0")}}
			},
			have: func(s *State) {
				*s = State{Links: []Link{{Name: "flannel0", Kind: KindTUN, MTU: 1500, TxQueueLen: 500}}}
			},
			ops: []string{"change device flannel0 mtu 1472 txqueuelen 5000 up",
				"replace route 10.5.0.0/16 dev flannel0 proto 157"},
		},
		{
			name: "the underlay is down or gone",
			have: func(s *State) { s.Links[1].Up = false },
			want: func(s *State) {
				s.Routes = []Route{ours("10.5.3.0/24", "172.31.0.3", "eth0"), ours("10.5.4.0/24", "1.1.1.1", "eth9")}
			},
			ops:     []string{"delete route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 157 onlink"},
			waiting: []string{"eth0", "eth9"},
		},
		{
			name: "another backend: device, its port and routes go first",
			want: func(s *State) {
				*s = State{Networks: nets,
					Routes: []Route{ours("10.5.2.0/24", "172.31.0.2", "eth0")}}
			},
			have: func(s *State) {
				s.Links = append(s.Links, Link{Name: "flannel0", Kind: KindIPIP, IPIP: IPIP{FOUPort: 8285}})
				s.Addrs = append(s.Addrs, Addr{"flannel0", prefix("10.5.1.0/32")})
				s.FOU = []FOUPort{{8285}, {5555}}
			},
			ops: []string{"delete device flannel.1 type vxlan", "delete device flannel0 type ipip",
				"delete fou port 8285 ipproto 4",
				"replace route 10.5.2.0/24 via 172.31.0.2 dev eth0 proto 157"},
		},
		{
			name: "flannel's device with routes only",
			want: func(s *State) { *s = State{Networks: nets} },
			have: func(s *State) { s.Addrs = s.Addrs[1:] },
			ops:  []string{"delete device flannel.1 type vxlan"},
		},
		{
			name: "a device of ours that carries nothing: whose it is cannot be seen",
			want: func(s *State) { *s = State{Networks: nets} },
			have: func(s *State) { *s = State{Links: []Link{vx(nil)}} },
		},
		{
			name: "devices of a second daemon with another network, and TUNs, stay",
			want: func(s *State) { *s = State{Networks: []netip.Prefix{prefix("10.99.0.0/16")}} },
			have: func(s *State) {
				s.Links = append(s.Links, Link{Name: "flannel0", Kind: KindTUN})
				s.Addrs = append(s.Addrs, Addr{"flannel0", prefix("10.99.1.0/32")})
			},
		},
		{
			name: "a wider route that begins where our network does stays",
			want: func(s *State) { *s = State{Networks: []netip.Prefix{prefix("10.0.0.0/16")}} },
			have: func(s *State) { s.Routes = append(s.Routes, ours("10.0.0.0/8", "172.31.0.9", "eth0")) },
		},
		{
			name: "a port that the engine binds is freed",
			want: func(s *State) { s.FreePorts = []FOUPort{{8285}} },
			have: func(s *State) { s.FOU = []FOUPort{{8285}, {8286}} },
			ops:  []string{"delete fou port 8285 ipproto 4"},
		},
		{
			name: "the kernel's carrier in place of the engine's device",
			want: func(s *State) {
				*s = State{Networks: nets, FOU: []FOUPort{{8285}},
					Links: []Link{{Name: "flannel0", Kind: KindIPIP, IPIP: IPIP{FOUPort: 8285}}}}
			},
			have: func(s *State) {
				*s = State{Links: []Link{{Name: "flannel0", Kind: KindIPIP, IPIP: IPIP{FOUPort: 8000}}},
					FOU: []FOUPort{{8000}}}
			},
			ops: []string{"delete device flannel0 type ipip", "delete fou port 8000 ipproto 4",
				"create device flannel0 type ipip", "replace fou port 8285 ipproto 4"},
		},
		{
			name: "checksums in software",
			want: func(s *State) {
				*s = State{Networks: nets, Links: []Link{{Name: "flannel0", Kind: KindIPIP, NoTxOffload: true}}}
			},
			have: func(s *State) { *s = State{Links: []Link{{Name: "flannel0", Kind: KindIPIP}}} },
			ops:  []string{"change device flannel0 tx-checksum off"},
		},
		{
			name: "flannel's blackhole goes where we want one, others and other refusals stay",
			have: func(s *State) {
				s.Routes = append(s.Routes, Route{Dst: prefix("10.5.1.0/24"), Kind: Blackhole, Protocol: protocolBoot},
					Route{Dst: prefix("10.5.7.0/24"), Kind: Blackhole, Protocol: protocolBoot},
					Route{Dst: prefix("10.5.1.0/24"), Kind: Blackhole, Metric: 5, Protocol: 4},
					Route{Dst: prefix("10.5.1.0/24"), Kind: "prohibit", Metric: 6, Protocol: protocolBoot})
			},
			want: func(s *State) {
				s.Routes = append(s.Routes, Route{Dst: prefix("10.5.1.0/24"), Kind: Blackhole, Metric: 9,
					Protocol: RouteProtocol})
			},
			ops: []string{"delete route blackhole 10.5.1.0/24 proto 3",
				"replace route blackhole 10.5.1.0/24 proto 157 metric 9"},
		},
		{
			name: "flannel's blackhole stays where we want none, and one behind a route of ours",
			have: func(s *State) {
				s.Routes = append(s.Routes, Route{Dst: prefix("10.5.1.0/24"), Kind: Blackhole, Protocol: protocolBoot},
					Route{Dst: prefix("10.5.2.0/24"), Kind: Blackhole, Metric: 100, Protocol: protocolBoot})
			},
		},
		{
			name: "blackhole",
			want: func(s *State) {
				s.Routes = append(s.Routes, Route{Dst: prefix("10.5.1.0/24"), Kind: Blackhole, Metric: 9,
					Protocol: RouteProtocol})
			},
			ops: []string{"replace route blackhole 10.5.1.0/24 proto 157 metric 9"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			have, want := vxlanHave(), vxlanWant()
			if tt.have != nil {
				tt.have(&have)
			}
			if tt.want != nil {
				tt.want(&want)
			}
			got := diff(have, want)
			if !slices.Equal(texts(got.ops), tt.ops) {
				t.Errorf("operations\n  got  %s\n  want %s", strings.Join(texts(got.ops), "\n       "),
					strings.Join(tt.ops, "\n       "))
			}
			if !slices.Equal(got.waiting, tt.waiting) {
				t.Errorf("waiting for %q, want %q", got.waiting, tt.waiting)
			}
			if !slices.Equal(got.conflicts, tt.conflicts) {
				t.Errorf("conflicts\n  got  %q\n  want %q", got.conflicts, tt.conflicts)
			}
		})
	}
}

func TestDiffWireGuardAndCommands(t *testing.T) {
	tunnel := Tunnel{Dev: "flannel-wg", PrivateKey: Key{1}, ListenPort: 51820}
	peer := Peer{Dev: "flannel-wg", PublicKey: Key{2}, Endpoint: netip.MustParseAddrPort("172.31.0.2:51820"),
		Allowed: prefix("10.5.2.0/24"), Keepalive: time.Second}
	gone := Peer{Dev: "flannel-wg", PublicKey: Key{3}}
	cmd := Command{ID: "10.5.2.0/24", Add: "true", Remove: "false", Env: "A=1"}
	changed := cmd
	changed.Env = "A=2"
	link := Link{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1420, Up: true}
	want := State{Networks: nets, Links: []Link{link}, Tunnels: []Tunnel{tunnel}, Peers: []Peer{peer},
		Commands: []Command{cmd}}
	have := want
	have.Tunnels = []Tunnel{{Dev: "flannel-wg", PrivateKey: Key{9}, ListenPort: 1}}
	have.Peers = []Peer{gone}
	have.Commands = []Command{changed}
	wantOps := []Op{{Replace, tunnel}, {Replace, peer}, {Delete, gone}, {Delete, changed}, {Replace, cmd}}
	if got := diff(have, want).ops; !slices.Equal(got, wantOps) {
		t.Errorf("got %v\nwant %v", got, wantOps)
	}
	if got := diff(want, want).ops; len(got) != 0 {
		t.Errorf("in place, yet %v", got)
	}
	for _, o := range append(wantOps, Op{Create, link}, Op{Replace, FOUPort{1}}) {
		if dev, want := o.Object.device(), map[bool]string{true: "", false: "flannel-wg"}[isOnNone(o)]; dev != want {
			t.Errorf("%v is on %q", o, dev)
		}
		if s := o.String(); strings.Contains(s, tunnel.PrivateKey.Base64()) {
			t.Errorf("%q shows the private key", s)
		}
	}
}

// isOnNone reports whether the object belongs to no device.
func isOnNone(o Op) bool {
	switch o.Object.(type) {
	case FOUPort, Command:
		return true
	}
	return false
}

// TestDiffRenamed renames the device: it gets its name back, and the rest waits. Devices of other
// kinds or addresses keep theirs.
func TestDiffRenamed(t *testing.T) {
	renamed := func(change func(*Link)) State {
		s := vxlanHave()
		s.Links, s.Addrs = slices.Clone(s.Links), slices.Clone(s.Addrs)
		s.Links[0] = vx(func(l *Link) { l.Name = "foo0" })
		s.Addrs[0].Dev = "foo0"
		s.Routes = notOn(s.Routes, "flannel.1")
		if change != nil {
			change(&s.Links[0])
		}
		return s
	}
	got := diff(renamed(nil), vxlanWant())
	if ops := texts(got.ops); len(ops) != 1 || !strings.Contains(ops[0], "flannel.1 type vxlan renamed from foo0") ||
		!slices.Equal(got.waiting, []string{"flannel.1"}) {
		t.Errorf("operations %q, waiting for %q", ops, got.waiting)
	}
	for name, have := range map[string]State{
		"another kind": renamed(func(l *Link) { l.Kind = KindTUN }),
		"another address": func() State {
			s := renamed(nil)
			s.Addrs[0].Prefix = prefix("10.6.1.0/32")
			return s
		}(),
	} {
		for _, op := range texts(diff(have, vxlanWant()).ops) {
			if strings.Contains(op, "renamed") {
				t.Errorf("%s: %s", name, op)
			}
		}
	}
}

func TestConflictError(t *testing.T) {
	err := conflictError([]string{"d", "c", "b", "a"})
	if want := "not owned by this daemon: a; b; c (and 1 more)"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if want := "not owned by this daemon: x"; conflictError([]string{"x"}).Error() != want {
		t.Errorf("got %q", conflictError([]string{"x"}))
	}
}
