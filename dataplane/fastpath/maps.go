//go:build amd64 || arm64

package fastpath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/dataplane/fib"
)

// flagPaused is a bit of settingsValue.Flags.
const flagPaused = 1

// outer6 is a bit of settingsValue.Flags and of nodeValue.Flags: the outer address is an IPv6
// address.
const outer6 = 128

// familyBit returns the bit for the family of an outer address.
func familyBit(a netip.Addr) uint8 {
	if a.Is6() {
		return outer6
	}
	return 0
}

// address is struct address of bpf/fastpath.c.
type address = [16]byte

// settingsValue is struct settings of bpf/fastpath.c.
type settingsValue struct {
	Local                       address
	Device, Underlay            uint32
	Port, Source                [2]byte
	Check, TOSMask, Flags, Link uint8
	Stage                       uint32
}

func bigEndian(port uint16) (b [2]byte) {
	binary.BigEndian.PutUint16(b[:], port)
	return b
}

// prefixKey is struct prefix of bpf/fastpath.c.
type prefixKey struct {
	Len  uint32
	Addr [16]byte
}

func newPrefixKey(p netip.Prefix) prefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefixKey{Len: uint32(bits), Addr: p.Masked().Addr().As16()}
}

// nodeValue is struct node of bpf/fastpath.c.
type nodeValue struct {
	Endpoint   address
	Flags, MTU uint16
}

// addrOf returns an outer address.
func addrOf(a address) netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Bits of nodeValue.Flags.
const (
	nodeLocal = 1 << iota
	nodeFast
	nodeAvoid
)

// maxMTU is the MTU in bytes of a path that no route limits.
const maxMTU = 65535

func (p *Path) newNodeValue(n fib.Node) (v nodeValue) {
	a := n.Endpoint.Addr().Unmap()
	if !a.IsValid() {
		return nodeValue{}
	}
	v.Endpoint, v.MTU = a.As16(), cmp.Or(p.mtus[a], maxMTU)
	v.Flags = uint16(familyBit(a))
	if n.Fast {
		v.Flags |= nodeFast
	}
	if p.avoided[a] {
		v.Flags |= nodeAvoid
	}
	return v
}

// nodeValues returns the desired content of the map of nodes. If several nodes have a prefix, the
// first one wins, as in fib.Table. A node without an outer address, or with one of the other family
// than this node's, is listed, too, so that inbound finds that its subnets are leased.
func (p *Path) nodeValues(local fib.Node, others []fib.Node) map[prefixKey]nodeValue {
	values := make(map[prefixKey]nodeValue, len(others)+1)
	for _, n := range others {
		v := p.newNodeValue(n)
		for _, prefix := range n.Prefixes {
			if _, taken := values[newPrefixKey(prefix)]; prefix.IsValid() && !taken {
				values[newPrefixKey(prefix)] = v
			}
		}
	}
	for _, prefix := range local.Prefixes {
		if prefix.IsValid() {
			values[newPrefixKey(prefix)] = nodeValue{Flags: nodeLocal}
		}
	}
	return values
}

// SetPathMTUs sets the MTUs in bytes of the paths to outer addresses, as far as the routes of this
// node limit them. Outbound passes longer packets. One call for many addresses costs little more
// than for one.
func (p *Path) SetPathMTUs(mtus map[netip.Addr]int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := make(map[address]uint16)
	for a, mtu := range mtus {
		limit := uint16(min(mtu, maxMTU))
		if p.counted[a] && cmp.Or(p.mtus[a], maxMTU) != limit {
			p.mtus[a], changed[a.As16()] = limit, limit
		}
	}
	if len(changed) == 0 {
		return nil
	}
	for k, v := range p.nodes {
		limit, ok := changed[v.Endpoint]
		if !ok {
			continue
		}
		v.MTU = limit
		if err := p.putPrefix(k, v); err != nil {
			return err
		}
	}
	return nil
}

// Avoid sets the outer addresses where packets of outbound do not arrive. Outbound passes all
// packets to them but probes.
func (p *Path) Avoid(addrs map[netip.Addr]bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(addrs, p.avoided) {
		return nil
	}
	p.avoided = maps.Clone(addrs)
	for k, v := range p.nodes {
		if v.Flags &^= nodeAvoid; p.avoided[addrOf(v.Endpoint)] {
			v.Flags |= nodeAvoid
		}
		if err := p.putPrefix(k, v); err != nil {
			return err
		}
	}
	return nil
}

// setPrefixes updates the kernel's map of nodes. The caller holds p.mu.
func (p *Path) setPrefixes(want map[prefixKey]nodeValue) error {
	next := make(map[prefixKey]nodeValue, len(want))
	for k, v := range p.nodes {
		next[k] = v
	}
	p.nodes = next
	for k, v := range want {
		if err := p.putPrefix(k, v); err != nil {
			return err
		}
	}
	for k := range p.nodes {
		if _, ok := want[k]; ok {
			continue
		}
		if err := p.deletePrefix(k); err != nil {
			return err
		}
	}
	return nil
}

// changePrefix sets the node of a prefix, or removes the prefix if n is nil. A subnet of this node
// stays. The caller holds p.mu.
func (p *Path) changePrefix(k prefixKey, n *fib.Node) error {
	switch {
	case p.nodes[k].Flags&nodeLocal != 0:
		return nil
	case n == nil:
		return p.deletePrefix(k)
	}
	return p.putPrefix(k, p.newNodeValue(*n))
}

func (p *Path) putPrefix(k prefixKey, v nodeValue) error {
	if old, ok := p.nodes[k]; ok && old == v {
		return nil
	}
	if err := p.objects.Nodes.Put(k, v); err != nil {
		return fmt.Errorf("add subnet to the fast path: %w", err)
	}
	p.nodes[k] = v
	return nil
}

func (p *Path) deletePrefix(k prefixKey) error {
	if err := p.objects.Nodes.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove subnet from the fast path: %w", err)
	}
	delete(p.nodes, k)
	return nil
}

// setEndpoints updates the kernel's map of counters, whose keys are also the known senders. It
// returns the counts of removed ones. The caller holds p.mu.
func (p *Path) setEndpoints(others []fib.Node) (map[netip.Addr]Traffic, error) {
	want := make(map[netip.Addr]bool, len(others))
	for _, n := range others {
		if a := n.Endpoint.Addr().Unmap(); a.IsValid() {
			want[a] = true
		}
	}
	gone := make(map[netip.Addr]Traffic)
	for a := range want {
		if err := p.changeEndpoint(a, true, gone); err != nil {
			return gone, err
		}
	}
	for a := range p.counted {
		if want[a] {
			continue
		}
		if err := p.changeEndpoint(a, false, gone); err != nil {
			return gone, err
		}
	}
	return gone, nil
}

// changeEndpoint adds or removes an outer address, and adds the counts of a removed one to gone.
// The caller holds p.mu.
func (p *Path) changeEndpoint(a netip.Addr, known bool, gone map[netip.Addr]Traffic) error {
	if !a.IsValid() || p.counted[a] == known {
		return nil
	}
	if known {
		if err := p.putEndpoint(a); err != nil {
			return fmt.Errorf("add node to the fast path: %w", err)
		}
		p.counted[a] = true
		return nil
	}
	gone[a] = p.traffic(a)
	p.past.Add(gone[a])
	delete(p.counted, a)
	delete(p.mtus, a)
	if err := p.objects.Endpoints.Delete(a.As16()); err != nil {
		return fmt.Errorf("remove node from the fast path: %w", err)
	}
	return nil
}

// putEndpoint adds an outer address to the kernel's map. The kernel takes memory for each CPU from
// a reserve, which it refills in the background (mm/percpu.c): it may have none for a moment after
// many additions.
func (p *Path) putEndpoint(a netip.Addr) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	const attempts, pause = 200, time.Millisecond // less than LIFE of the programs
	counts := make([]Traffic, cpus)
	for range attempts {
		if err = p.objects.Endpoints.Put(a.As16(), counts); !errors.Is(err, unix.ENOMEM) {
			return err
		}
		time.Sleep(pause)
	}
	return err
}

// traffic returns the counts of an outer address; zero if it has none.
func (p *Path) traffic(a netip.Addr) (sum Traffic) {
	var perCPU []Traffic
	if err := p.objects.Endpoints.Lookup(a.As16(), &perCPU); err != nil {
		return Traffic{}
	}
	for _, t := range perCPU {
		sum.Add(t)
	}
	return sum
}

// batch is the number of entries that are read with one system call.
const batch = 512

// readEndpoints reads the counts of the outer addresses that had packets, in batches where the
// kernel can (Linux 5.6). The caller holds p.mu.
func (p *Path) readEndpoints(counts map[netip.Addr]Traffic) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil || !p.readBatches(cpus, counts) {
		for a := range p.counted {
			if t := p.traffic(a); t != (Traffic{}) {
				counts[a] = t
			}
		}
	}
}

// readBatches is readEndpoints for kernels that can; else it returns false.
func (p *Path) readBatches(cpus int, counts map[netip.Addr]Traffic) bool {
	keys, perCPU := make([]address, batch), make([]Traffic, batch*cpus)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := p.objects.Endpoints.BatchLookup(&cursor, keys, perCPU, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false
		}
		for i, k := range keys[:n] {
			var sum Traffic
			for _, t := range perCPU[i*cpus : (i+1)*cpus] {
				sum.Add(t)
			}
			if sum != (Traffic{}) {
				counts[addrOf(k)] = sum
			}
		}
		if err != nil {
			return true
		}
	}
}

// Stats returns the counters.
func (p *Path) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{
		Total:  p.past,
		Nodes:  make(map[netip.Addr]Traffic),
		Passed: make(map[Pass]uint64, numPasses),
	}
	p.readEndpoints(s.Nodes)
	for _, t := range s.Nodes {
		s.Total.Add(t)
	}
	for _, v := range Passes() {
		var perCPU []uint64
		if err := p.objects.Verdicts.Lookup(uint32(v), &perCPU); err != nil {
			continue // a closed path counts nothing
		}
		for _, n := range perCPU {
			s.Passed[v] += n
		}
	}
	return s
}
