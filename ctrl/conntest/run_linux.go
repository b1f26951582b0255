package conntest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"weft/ctrl/doctor"
)

// Source is the node that tests.
type Source struct {
	Node string
	MTU  int    // of pods, in bytes; 0 means that of the pod's device
	Port uint16 // of the servers
	// Pod and Host are the namespaces to test from. Checks from one that is nil are left out.
	Pod, Host Namespace
	Services  []netip.AddrPort // addresses of Services that lead to servers
	// Priority is the socket priority of packets that the fast path of the udp backend leaves to
	// the workers. It is 0 if there is no fast path, so that packets have one way.
	Priority int
}

const (
	// echoWait is the time to wait for an answer. The first packet may wait for a neighbour.
	echoWait = 700 * time.Millisecond
	// searchWait is the time to wait for an answer in the search for the path MTU. The packets
	// before it were answered.
	searchWait = 150 * time.Millisecond
	// pairsAtOnce bounds the pairs that are tested at a time. Each has a few threads and a MiB.
	pairsAtOnce = 16
	// serviceConnections is the number of connections to a Service: enough to reach several pods.
	serviceConnections = 5
	// minMTU is the smallest MTU of an IPv6 path (RFC 8200, section 5), and the least that the
	// search looks for.
	minMTU = 1280
)

// probed is the raw result of a check.
type probed struct {
	err     error
	skipped string        // why it was not done
	pinged  bool          // an echo was answered, whatever failed afterwards
	rtt     time.Duration // of an echo
	tooBig  int           // path MTU of an ICMP error in bytes, 0 without one
	size    int           // of the packets of the check of large ones, bytes
	fits    int           // size of the largest packet that was answered in bytes, 0 if unknown
}

// Run tests the connectivity from a node to the targets and its Services.
func Run(ctx context.Context, from Source, targets []Target) []Result {
	var pairs []pair
	for _, t := range targets {
		for _, family := range []string{ipv4, ipv6} {
			p := pair{from, t, family, ofFamily(t.Pod, family), ofFamily(t.Host, family)}
			if p.pod.IsValid() || p.host.IsValid() {
				pairs = append(pairs, p)
			}
		}
	}
	perPair := make([][]Result, len(pairs)+1)
	slots := make(chan struct{}, pairsAtOnce)
	var group sync.WaitGroup
	for i, p := range pairs {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			perPair[i] = p.test(ctx)
		})
	}
	group.Go(func() { perPair[len(pairs)] = from.testServices(ctx) })
	group.Wait()
	return slices.Concat(perPair...)
}

// pair is a source and a target in one family.
type pair struct {
	Source
	Target
	family    string
	pod, host netip.Addr // of the target
}

// test does the checks, all at once.
func (p pair) test(ctx context.Context) []Result {
	var underlay *probed
	var group sync.WaitGroup
	if p.Public.IsValid() {
		group.Go(func() {
			from := p.Source.Host
			if from == nil {
				from = p.Source.Pod
			}
			result := echo(ctx, from, p.Public, doctor.EchoSize, doctor.Marks{})
			underlay = &result
		})
	}
	usual := p.probeAll(ctx, 0)
	group.Wait()
	results := p.results(usual, underlay)
	if p.Priority == 0 {
		return results
	}
	// Not at the same time: what workers carry moves the other echoes to the workers, too, since
	// their addresses are the same.
	byWorkers := p.probeAll(ctx, workerTOS)
	there := probed{skipped: "not sent from the host"}
	if p.commonReason(byWorkers, underlay) != "" && p.Source.Host != nil && p.host.IsValid() {
		there = echo(ctx, p.Source.Host, p.host, doctor.EchoSize, doctor.Marks{Priority: p.Priority})
	}
	return p.addWorkers(results, usual, byWorkers, there)
}

// probeAll does all checks at once, with packets of a TOS.
func (p pair) probeAll(ctx context.Context, tos int) map[Check]probed {
	found := map[Check]probed{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, c := range checks() {
		if probe := p.probe(c, tos); probe != nil {
			group.Go(func() {
				result := probe(ctx)
				mu.Lock()
				defer mu.Unlock()
				found[c] = result
			})
		}
	}
	group.Wait()
	return found
}

// probe returns the function that does a check, nil if the source cannot.
func (p pair) probe(c Check, tos int) func(context.Context) probed {
	from := p.Source.Pod
	if c == HostToPod {
		from = p.Source.Host
	}
	if from == nil {
		return nil
	}
	to := p.pod
	if !to.IsValid() && c == Large {
		to = p.host
	}
	if c == PodToHost {
		to = p.host
	}
	server := netip.AddrPortFrom(to, p.Port)
	client, marks := caller{from, tos}, doctor.Marks{TOS: tos}
	return func(ctx context.Context) probed {
		if !to.IsValid() {
			return probed{skipped: p.NoServer}
		}
		switch c {
		case PodToPod:
			return echo(ctx, from, to, doctor.EchoSize, marks)
		case Large:
			return p.large(ctx, to, marks)
		case TCP:
			return probed{err: client.exchange(ctx, server)}
		case Fragments:
			return probed{err: client.exchangeDatagram(ctx, server)}
		}
		result := echo(ctx, from, to, doctor.EchoSize, marks)
		if result.err == nil && p.NoServer == "" {
			_, result.err = client.discover(ctx, server)
		}
		return result
	}
}

// errNoAnswer means that no echo was answered.
var errNoAnswer = errors.New("no answer to ping")

// echo sends echo requests until one is answered.
func echo(
	ctx context.Context, from Namespace, to netip.Addr, size int, m doctor.Marks,
) (p probed) {
	p.err = from.Do(func() error {
		e := doctor.PingMarked(ctx, to, size, echoWait, m)
		p.rtt, p.tooBig = e.RTT, e.TooBig
		if e.Received > 0 {
			p.pinged = true
			return nil
		}
		if e.Err != nil {
			return fmt.Errorf("%w: %w", errNoAnswer, e.Err)
		}
		return errNoAnswer
	})
	return p
}

// large sends packets of the pods' MTU, and after a failure searches for the largest that is
// answered. The node's device may be narrower by design: with both families, the MTU of pods suits
// the smaller IPv4 header. Without a view of the host, any narrower path is taken for that if the
// kernel reports it.
func (p pair) large(ctx context.Context, to netip.Addr, m doctor.Marks) probed {
	size := p.MTU
	if size == 0 {
		size = deviceMTU(p.Source.Pod, to, minMTU)
	}
	if p.Source.Host != nil {
		size = min(size, deviceMTU(p.Source.Host, to, size))
	}
	result := echo(ctx, p.Source.Pod, to, size, m)
	result.size = size
	if p.Source.Host == nil && result.tooBig != 0 {
		return echo(ctx, p.Source.Pod, to, result.tooBig, m)
	}
	if result.err != nil && result.tooBig == 0 {
		result.fits = p.search(ctx, to, size, m)
	}
	return result
}

// search returns the size of the largest packet below a size that is answered, 0 if there is none.
func (p pair) search(ctx context.Context, to netip.Addr, below int, m doctor.Marks) int {
	passes := func(size int) bool {
		var e doctor.Echo
		err := p.Source.Pod.Do(func() error {
			e = doctor.PingMarked(ctx, to, size, searchWait, m)
			return nil
		})
		return err == nil && e.Received > 0
	}
	if !passes(minMTU) {
		return 0
	}
	low, high := minMTU, below
	for low+1 < high {
		if middle := (low + high) / 2; passes(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// deviceMTU returns the MTU of the device of the route to an address, or otherwise if there is
// none.
func deviceMTU(from Namespace, to netip.Addr, otherwise int) int {
	mtu := otherwise
	err := from.Do(func() error {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil || len(routes) == 0 {
			return err
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err == nil {
			mtu = link.Attrs().MTU
		}
		return err
	})
	if err != nil {
		return otherwise // the packet fails for the same reason, and the result has it
	}
	return mtu
}

// testServices tests the Services from the pod.
func (s Source) testServices(ctx context.Context) []Result {
	if s.Pod == nil {
		return nil
	}
	var results []Result
	for _, to := range s.Services {
		r := Result{From: s.Node, To: to.String(), Family: ipv4, Check: Service, Outcome: Passed}
		if to.Addr().Is6() {
			r.Family = ipv6
		}
		for range serviceConnections {
			if _, err := Discover(ctx, s.Pod, to); err != nil {
				r.Outcome, r.Reason = Failed, Describe(err)
				break
			}
		}
		results = append(results, r)
	}
	return results
}
