package scale

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/lease/etcd/testetcd"
)

const (
	prefix = "/coreos.com/network"
	// firstSubnet leaves the first 1,024 subnets of 10.0.0.0/8 to the daemon.
	firstSubnet = 1024
	// lag is how long after a change of a lease a packet may still go to the former node.
	lag = 2 * time.Second
	// maxOps is below etcd's limit of operations per transaction.
	maxOps = 100
)

// cluster holds the leases of the other nodes, in etcd and here. Its methods are safe for
// concurrent use.
type cluster struct {
	etcd    *testetcd.Server
	backend string

	mu     sync.Mutex // guards the fields below
	rng    *rand.Rand
	leases map[int]record
}

// record is the history of one lease.
type record struct {
	public  netip.Addr // invalid: no lease
	version int
	changed time.Time
	former  []owner // the last ones
}

// owner is a node that had a lease until a moment.
type owner struct {
	public netip.Addr
	until  time.Time
}

// replace gives the lease another owner.
func (r *record) replace(public netip.Addr, now time.Time) {
	r.former = slices.DeleteFunc(slices.Clone(r.former),
		func(o owner) bool { return now.Sub(o.until) > lag })
	r.former = append(r.former, owner{r.public, now})
	r.public, r.changed = public, now
}

func newCluster(etcd *testetcd.Server, backend string) *cluster {
	return &cluster{etcd: etcd, backend: backend, rng: rand.New(rand.NewPCG(1, 2)),
		leases: map[int]record{}}
}

// subnet returns the subnet of lease i.
func subnet(i int) netip.Prefix {
	n := firstSubnet + i
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
}

// pod returns the address of a pod of lease i.
func pod(i int) netip.Addr {
	a := subnet(i).Addr().As4()
	a[3] = 9
	return netip.AddrFrom4(a)
}

// leaseOf returns the number of the lease that a pod's address belongs to.
func leaseOf(a netip.Addr) int {
	b := a.As4()
	return int(b[1])<<8 + int(b[2]) - firstSubnet
}

// publicAddr returns the address of a node. Each version of a lease has another of four.
func publicAddr(i, version int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 20 + byte(version&3), byte(i >> 8), byte(i)})
}

// publicRange contains all addresses of publicAddr.
func publicRange() netip.Prefix { return netip.MustParsePrefix("172.20.0.0/14") }

func key(i int) string {
	s := subnet(i)
	return fmt.Sprintf("%s/subnets/%s-%d", prefix, s.Addr(), s.Bits())
}

func (c *cluster) value(i, version int) string {
	public := publicAddr(i, version)
	if c.backend != "vxlan" {
		return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, public)
	}
	p := public.As4()
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan",`+
		`"BackendData":{"VNI":1,"VtepMAC":"0a:01:%02x:%02x:%02x:%02x"}}`,
		public, p[0], p[1], p[2], p[3])
}

// fill writes the config and the leases from 0 to n-1.
func (c *cluster) fill(n int) error {
	config := fmt.Sprintf(`{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":%q}}`, c.backend)
	if err := c.etcd.Put(prefix+"/config", config); err != nil {
		return err
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	for some := range slices.Chunk(all, maxOps) {
		if err := c.change(some, nil); err != nil {
			return err
		}
	}
	return nil
}

// change gives the leases in move another node, or their first, and removes those in remove.
func (c *cluster) change(move, remove []int) error {
	put, gone := map[string]string{}, []string{}
	c.mu.Lock()
	now := time.Now()
	for _, i := range move {
		r := c.leases[i]
		r.version++
		r.replace(publicAddr(i, r.version), now)
		c.leases[i] = r
		put[key(i)] = c.value(i, r.version)
	}
	for _, i := range remove {
		r := c.leases[i]
		r.replace(netip.Addr{}, now)
		c.leases[i] = r
		gone = append(gone, key(i))
	}
	c.mu.Unlock()
	return c.etcd.Change(put, gone)
}

// rewrite writes leases again as they are.
func (c *cluster) rewrite(leases []int) error {
	put := map[string]string{}
	c.mu.Lock()
	for _, i := range leases {
		if r := c.leases[i]; r.public.IsValid() {
			put[key(i)] = c.value(i, r.version)
		}
	}
	c.mu.Unlock()
	return c.etcd.Change(put, nil)
}

// bytes returns the size of all keys and values: about that of a list.
func (c *cluster) bytes() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.leases {
		if r.public.IsValid() {
			n += len(key(i)) + len(c.value(i, r.version))
		}
	}
	return n
}

// churn makes n random changes: most move a lease to another node, others remove it or bring it
// back, so that about a tenth of the leases is missing.
func (c *cluster) churn(n, leases int) error {
	move, remove := map[int]bool{}, map[int]bool{}
	c.mu.Lock()
	for len(move)+len(remove) < n {
		i := c.rng.IntN(leases)
		if !move[i] && c.leases[i].public.IsValid() && c.rng.IntN(10) == 0 {
			remove[i] = true
		} else if !remove[i] {
			move[i] = true
		}
	}
	c.mu.Unlock()
	return c.change(slices.Collect(maps.Keys(move)), slices.Collect(maps.Keys(remove)))
}

// random returns a random lease that a node has had for longer than lag.
func (c *cluster) random(leases int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		i := c.rng.IntN(leases)
		if r := c.leases[i]; r.public.IsValid() && time.Since(r.changed) > lag {
			return i
		}
	}
}

// verdict judges a packet to lease i that was sent to an outer address.
type verdict int

const (
	right verdict = iota
	late          // to a former node, shortly after the change
	wrong
)

func (c *cluster) judge(i int, outer netip.Addr, at time.Time) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.leases[i]
	if r.public == outer {
		return right
	}
	if slices.ContainsFunc(r.former, func(o owner) bool {
		return o.public == outer && at.Sub(o.until) < lag
	}) {
		return late
	}
	return wrong
}

// listed returns the leases with a node, and those without one.
func (c *cluster) listed() (live, gone []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.leases {
		if r.public.IsValid() {
			live = append(live, i)
		} else {
			gone = append(gone, i)
		}
	}
	return live, gone
}
