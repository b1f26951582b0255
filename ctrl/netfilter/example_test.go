package netfilter

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// A daemon calls New, which needs the privileges to change the host's rules. This example applies
// the rules to tables in memory.
func ExampleManager() {
	host := newMemoryHost()
	m := newManager(host, Options{Resync: 5 * time.Second})

	// Run does nothing before the first Set. The rules stay when ctx ends.
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()

	// Call Set again whenever the wanted rules change.
	m.Set(Desired{
		Nets: []Net{{
			Network: netip.MustParsePrefix("10.5.0.0/16"),
			Subnet:  netip.MustParsePrefix("10.5.77.0/24"),
		}},
		Masquerade: true,
		KeepSource: true,
		Forward:    true,
		NoTrack:    []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:8285")},
	})

	// InPlace tells a readiness check that the kernel holds exactly these rules.
	for !m.Status().InPlace {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done

	fmt.Println("mode:", m.Status().Mode)
	for _, rule := range host.tables.chains["filter"]["FLANNEL-FWD"] {
		fmt.Println(rule)
	}
	// Cleanup removes the rules of all daemons on the host.

	// Output:
	// mode: iptables
	// -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
	// -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
}

// memoryHost is a host that has iptables for IPv4 in memory.
type memoryHost struct{ tables *fakeTables }

func newMemoryHost() memoryHost { return memoryHost{newFakeTables()} }

func (h memoryHost) open(context.Context, bool, map[family]ruleset) (applier, error) {
	return h, nil
}

func (memoryHost) removeElsewhere(context.Context, applier, func(rule) bool) error { return nil }

func (memoryHost) watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}

func (memoryHost) mode() Mode { return IPTables }

func (h memoryHost) apply(ctx context.Context, want map[family]ruleset) (report, error) {
	return applyTables(ctx, h.tables, want[ipv4])
}
