package etcd

import "testing"

func TestWatchHostNames(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/net")
	op.put(t, "/config", onlyV4)
	second := open(t, testConfig(server, "/net", 1))
	first, err := Open(testConfig(server, "/net", 0))
	if err != nil {
		t.Fatal(err)
	}
	network := parseNetwork(t, onlyV4)
	mustClaim(t, first, request(network, 0))
	w := startWatch(t, second)
	awaitHosts(t, w, "node0")
	mustClaim(t, second, request(network, 1))
	awaitHosts(t, w, "node0", "node1")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// A lease that flannel writes has no owner.
	op.put(t, "/subnets/10.5.77.0-24", `{"PublicIP":"192.0.2.77"}`)
	awaitHosts(t, w, "node0", "node1", "")
}

// awaitHosts waits for leases with these host names, in any order.
func awaitHosts(t *testing.T, w watcher, want ...string) {
	t.Helper()
	for {
		got := map[string]int{}
		n := 0
		for l := range w.next(t).Leases.All() {
			got[l.Host]++
			n++
		}
		for _, host := range want {
			got[host]--
		}
		matches := n == len(want)
		for _, count := range got {
			matches = matches && count == 0
		}
		if matches {
			return
		}
	}
}
