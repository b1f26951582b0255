//go:build amd64 || arm64

package fastpath

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"weft/dataplane/fib"
	"weft/dataplane/tun"
	"weft/deploy/lab"
)

// newOtherPath returns a path whose maps have other types and sizes, as another version's may.
func newOtherPath(c Config) (*Path, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	spec.Maps["nodes"].MaxEntries = 100
	spec.Maps["flows"].MaxEntries *= 2
	spec.Maps["endpoints"].Type = ebpf.LRUCPUHash
	spec.Maps["endpoints"].Flags = 0
	p := &Path{config: c, counted: make(map[netip.Addr]bool), mtus: make(map[netip.Addr]uint16)}
	if err := spec.LoadAndAssign(&p.objects, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return p, p.Attach(c.Place)
}

// takeover is two nodes whose packets only programs carry: their TUN devices have no reader.
type takeover struct {
	t      *testing.T
	lab    *lab.Lab
	nodes  []fib.Node
	places []Place
	paths  []*Path
	pings  *lab.Pinger // from the first node to the second; nil before they begin
}

func newTakeover(t *testing.T) *takeover {
	t.Helper()
	lab.SkipWithoutTUN(t)
	o := &takeover{t: t, lab: lab.Start(t, lab.Options{PodsPerNode: -1}), paths: make([]*Path, 2)}
	for i, n := range o.lab.Nodes {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i + 1), 0}), 24)
		at := Place{Device: o.addDevice(n, subnet), Underlay: "eth0",
			Local: netip.AddrPortFrom(n.Addr, 8285)}
		o.places = append(o.places, at)
		o.nodes = append(o.nodes, fib.Node{Name: n.Name, Prefixes: []netip.Prefix{subnet},
			Endpoint: at.Local, Fast: true})
	}
	t.Cleanup(o.close)
	// The programs need the neighbour's link address.
	r, err := o.lab.Nodes[0].Ping(t.Context(), o.lab.Nodes[1].Addr, lab.Ping{})
	if err != nil || r.Received != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	return o
}

// addDevice creates the TUN device of a node and returns its name.
func (o *takeover) addDevice(n *lab.Node, subnet netip.Prefix) string {
	o.t.Helper()
	var device *tun.Device
	if err := n.Do(func() (err error) {
		device, err = tun.OpenOffload(tun.Config{Name: "flannel%d", Queues: 1, MTU: 1472})
		return err
	}); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		if err := device.Close(); err != nil {
			o.t.Error(err)
		}
	})
	if err := errors.Join(n.AddAddr(device.Name(), netip.PrefixFrom(subnet.Addr(), 32)),
		n.SetUp(device.Name(), true),
		n.AddRoute(netip.MustParsePrefix("10.5.0.0/16"), netip.Addr{}, device.Name())); err != nil {
		o.t.Fatal(err)
	}
	return device.Name()
}

func (o *takeover) close() {
	for i, n := range o.lab.Nodes {
		if o.paths[i] == nil {
			continue
		}
		if err := n.Do(func() error {
			_, err := RemoveAll()
			return errors.Join(err, o.paths[i].Close())
		}); err != nil {
			o.t.Error(err)
		}
	}
}

// replace opens a path on a node in place of the one there, as the next process does.
func (o *takeover) replace(i int, open func(Config) (*Path, error)) {
	o.t.Helper()
	err := o.lab.Nodes[i].Do(func() (err error) {
		old := o.paths[i]
		o.paths[i], err = open(Config{Place: o.places[i]})
		if err != nil || old == nil {
			return err
		}
		return old.Close() // its programs stay
	})
	if errors.Is(err, ErrUnsupported) {
		o.t.Skip("NOT TESTED:", err)
	} else if err != nil {
		o.t.Fatal(err)
	}
	o.awaitAnswers("before the nodes are known")
	if _, err := o.paths[i].SetNodes(o.nodes[i], []fib.Node{o.nodes[1-i]}); err != nil {
		o.t.Fatal(err)
	}
	o.awaitAnswers("after the takeover")
	if s := o.paths[i].Stats(); o.pings != nil && (s.Total.Sent == 0 || s.Total.Received == 0) {
		o.t.Errorf("%s: the new programs carried %+v", o.nodes[i].Name, s.Total)
	}
}

// awaitAnswers waits for further answers to the pings, if there are any.
func (o *takeover) awaitAnswers(when string) {
	o.t.Helper()
	if o.pings == nil {
		return
	}
	want := o.pings.Result().Received + 100
	if err := lab.Await(o.t.Context(), 5*time.Second, "answers "+when, func() error {
		if n := o.pings.Result().Received; n < want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	}); err != nil {
		o.t.Fatal(err)
	}
}

// TestNetnsTakeover lets paths with other maps replace each other, in both directions, while pings
// pass: none is lost.
func TestNetnsTakeover(t *testing.T) {
	o := newTakeover(t)
	o.replace(0, newOtherPath)
	o.replace(1, Open)
	var err error
	o.pings, err = o.lab.Nodes[0].StartPing(t.Context(), o.nodes[1].Prefixes[0].Addr(),
		lab.Ping{Count: -1, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		o.replace(0, Open)
		o.replace(1, newOtherPath)
		o.replace(0, newOtherPath)
		o.replace(1, Open)
	}
	if r := o.pings.Stop(); r.Lost() > 0 || r.Duplicates > 0 {
		r.RTT = nil
		t.Errorf("lost %d: %+v", r.Lost(), r)
	}
}
