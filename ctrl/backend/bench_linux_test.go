package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ctrl"
	"weft/ctrl/underlay"
	"weft/lease"
)

// manyLeases returns the leases of n nodes on one link.
func manyLeases(n int) []lease.Lease {
	ls := make([]lease.Lease, 0, n)
	for i := range n {
		hi, lo := byte(i>>8), byte(i)
		l := lease.Lease{Node: fmt.Sprintf("n%d", i),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, hi, lo, 0}), 24)}
		l.PublicIP, l.BackendType = netip.AddrFrom4([4]byte{172, 20, hi, lo}), "vxlan"
		l.BackendData = json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:%02x:%02x"}`, hi, lo))
		ls = append(ls, l)
	}
	return ls
}

// manyWant returns the plan of node 0 of 5,000 with vxlan: 4,999 routes, neighbours and forwarding
// entries.
func manyWant(b *testing.B) ctrl.State {
	b.Helper()
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		b.Fatal(err)
	}
	i := underlay.Iface{Name: "eth0", MTU: 1500, Addr: addr("172.20.0.0"), Public: addr("172.20.0.0")}
	backend, err := New(n, LocalNode{Iface: i, VTEP: ctrl.MAC{2, 0, 0, 0, 0, 0}})
	if err != nil {
		b.Fatal(err)
	}
	all := manyLeases(5000)
	for b.Loop() {
		backend.Plan(all[0], all)
	}
	return backend.Plan(all[0], all)
}

// BenchmarkPlan5000 plans for one of 5,000 nodes.
func BenchmarkPlan5000(b *testing.B) { manyWant(b) }

// cpuTime returns the user and system CPU time of this process so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkNetns5000 programs the real kernel for one of 5,000 nodes with vxlan: 15,000 objects. On
// a busy machine the CPU time says more than the wall clock.
func BenchmarkNetns5000(b *testing.B) {
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	under, err := bridge("eth0", "172.20.0.0/16")
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(under); err != nil {
			b.Error(err)
		}
	}()
	var want ctrl.State
	b.Run("plan", func(b *testing.B) { want = manyWant(b) })
	gone := func() {
		if _, err := ctrl.Cleanup(k); err != nil {
			b.Fatal(err)
		}
	}
	bring := func() {
		if err := ctrl.ApplyOnce(k, want); err != nil {
			b.Fatal(err)
		}
	}
	gone()
	b.Run("first", func(b *testing.B) {
		var cpu time.Duration
		for b.Loop() {
			start := cpuTime(b)
			bring()
			cpu += cpuTime(b) - start
			b.StopTimer()
			gone()
			b.StartTimer()
		}
		b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
	})
	bring()
	defer gone()
	b.Run("reconcile", func(b *testing.B) { // nothing to do
		start := cpuTime(b)
		for b.Loop() {
			bring()
		}
		b.ReportMetric(float64((cpuTime(b)-start).Milliseconds())/float64(b.N), "cpu-ms/op")
	})
	have, err := k.Read(ctrl.OverlayName)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("diff", func(b *testing.B) {
		for b.Loop() {
			if ops, err := difference(have, want); err != nil || len(ops) > 0 {
				b.Fatal(ops, err)
			}
		}
	})
	b.Run("neighbours and routes lost", func(b *testing.B) {
		ops := make([]ctrl.Op, 0, 2*len(want.Routes))
		for i := range want.Routes {
			ops = append(ops, ctrl.Op{Verb: ctrl.Delete, Object: want.Routes[i]},
				ctrl.Op{Verb: ctrl.Delete, Object: want.Neighbours[i]})
		}
		for b.Loop() {
			b.StopTimer()
			k.Apply(context.Background(), ops)
			b.StartTimer()
			bring()
		}
	})
}
