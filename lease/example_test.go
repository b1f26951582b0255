package lease_test

import (
	"fmt"
	"net/netip"

	"weft/lease"
)

func ExampleChoose() {
	network, err := lease.ParseNetwork([]byte(`{"Network": "10.5.0.0/20"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	existing := []lease.Lease{{
		Subnet: netip.MustParsePrefix("10.5.1.0/24"),
		Attrs:  lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1")},
	}}
	first := func(int) int { return 0 }

	// A new node gets a free subnet.
	r := lease.Request{Network: network, Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.2")}}
	c, err := lease.Choose(r, existing, first)
	fmt.Println(c.Subnet, c.Reuse, err)

	// A free previous subnet is preferred.
	r.Previous = netip.MustParsePrefix("10.5.7.0/24")
	c, err = lease.Choose(r, existing, first)
	fmt.Println(c.Subnet, c.Reuse, err)

	// A node with a lease keeps it.
	r.Attrs.PublicIP = netip.MustParseAddr("192.0.2.1")
	c, err = lease.Choose(r, existing, first)
	fmt.Println(c.Subnet, c.Reuse, err)

	// Output:
	// 10.5.2.0/24 false <nil>
	// 10.5.7.0/24 false <nil>
	// 10.5.1.0/24 true <nil>
}
