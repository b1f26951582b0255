package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mode selects how the underlay's links treat GSO frames, which senders leave for the hardware to
// segment.
type Mode string

const (
	// ModeOff passes GSO frames whole (up to 64 KiB), as links inside one machine do. It flatters
	// everything that uses them.
	ModeOff Mode = "off"
	// ModeWire disables segmentation offload: every frame is cut to the MTU before it leaves, as on
	// a real wire, and the receiving side may merge frames again (GRO).
	ModeWire Mode = "wire"
	// ModeNIC is ModeWire without checksum offload: the sender computes every checksum and the
	// receiver verifies it, as with network cards that know no tunnels.
	ModeNIC Mode = "nic"
)

// Modes lists all modes.
func Modes() []Mode { return []Mode{ModeWire, ModeNIC, ModeOff} }

const (
	rootName     = "root"
	underlayPort = "eth0" // of a node
	podPort      = "eth0" // of a pod
	// managementPort links a node to root.
	managementPort = "mgmt0"
	podBridge      = "cni0" // of a node; the default name of the CNI bridge plugin

	defaultMTU = 1500
	firstHost  = 11 // host number of the first node in each underlay subnet; root has 1

	// closeTimeout bounds the time that Close waits for processes it has killed.
	closeTimeout = 5 * time.Second
)

// Options describes a lab. The zero value is two nodes with one pod each.
type Options struct {
	Nodes       int // 2 if 0
	PodsPerNode int // 1 if 0, none if negative
	// Underlay lists the nodes' subnets, 172.31.0.0/24 if empty. Nodes are assigned to several
	// subnets in turn, and root routes between them.
	Underlay []netip.Prefix
	// Underlay6 adds IPv6 addresses to the nodes: empty, or one prefix per prefix of Underlay.
	Underlay6 []netip.Prefix
	MTU       int  // of the underlay, in bytes; 1500 if 0
	Mode      Mode // ModeOff if empty
	// Direct connects exactly two nodes by one link, without a bridge and a default route, so that
	// only the two ends cost CPU time.
	Direct bool
	// Management is a /24 for a second device of each node, mgmt0, linked to root only: for traffic
	// that must not share the underlay, such as metrics. Without it, the nodes of a direct lab
	// cannot reach root.
	Management netip.Prefix
	// NamePrefix precedes the names of nodes and pods, so that several direct labs can coexist.
	NamePrefix string
}

// Lab is a running network of nodes. Its methods are safe for concurrent use.
type Lab struct {
	// Root is the lab's own network namespace, in which this process runs: servers listen on
	// Root.Addr. [Lab.Partition] accepts it like a node.
	Root  *Node
	Nodes []*Node

	options Options

	mu        sync.Mutex
	processes []*Process
}

// New builds the underlay, the nodes and their pods. Pods have no link and no address until
// [Node.Attach]. New fails outside [Run] and [Main].
func New(ctx context.Context, o Options) (*Lab, error) {
	if !Inside() {
		return nil, errors.New("build lab: not in its namespaces: call lab.Run or lab.Main first")
	}
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("build lab: %w", err)
	}
	l := &Lab{options: o}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

// withDefaults fills in the defaults and validates the options.
func (o Options) withDefaults() (Options, error) {
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.PodsPerNode == 0 {
		o.PodsPerNode = 1
	}
	if len(o.Underlay) == 0 {
		o.Underlay = []netip.Prefix{netip.MustParsePrefix("172.31.0.0/24")}
	}
	if o.MTU == 0 {
		o.MTU = defaultMTU
	}
	if o.Mode == "" {
		o.Mode = ModeOff
	}
	switch {
	case !slices.Contains(Modes(), o.Mode):
		return o, fmt.Errorf("unknown mode %q: want one of %q", o.Mode, Modes())
	case len(o.Underlay6) != 0 && len(o.Underlay6) != len(o.Underlay):
		return o, fmt.Errorf("%d IPv6 underlay prefixes for %d IPv4 ones",
			len(o.Underlay6), len(o.Underlay))
	case o.Direct && (o.Nodes != 2 || len(o.Underlay) != 1):
		return o, errors.New("a direct lab needs 2 nodes in 1 subnet")
	}
	return o, nil
}

func (l *Lab) build(ctx context.Context) error {
	if err := l.addRoot(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for range l.options.Nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := l.AddNode(); err != nil {
			return err
		}
	}
	if l.options.Direct {
		return l.linkDirectly()
	}
	return nil
}

// addRoot opens the lab's own namespace and gives it a bridge and an address per underlay subnet.
func (l *Lab) addRoot() error {
	ns, err := openRoot()
	if err != nil {
		return err
	}
	dir := filepath.Join(labDir, l.options.NamePrefix+rootName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	l.Root = &Node{NS: ns, Dir: dir, lab: l}
	if err := l.Root.enableForwarding(); err != nil {
		return err
	}
	if l.options.Direct {
		return nil
	}
	for i := range l.options.Underlay {
		if err := l.addBridge(i); err != nil {
			return err
		}
	}
	return nil
}

// openRoot opens the namespace of this process.
func openRoot() (ns *NS, err error) {
	err = onThread(func() error {
		// A new thread is in the namespace of the process: moved threads are never used again.
		ns, err = openNS(rootName)
		return err
	})
	return ns, err
}

// addBridge adds the bridge and root's addresses of the i-th underlay subnet.
func (l *Lab) addBridge(i int) error {
	name := bridgeName(i)
	if err := addBridge(l.Root.NS, name, l.options.MTU); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	for family, underlay := range [][]netip.Prefix{l.options.Underlay, l.options.Underlay6} {
		if i >= len(underlay) {
			continue
		}
		address := netip.PrefixFrom(hostOf(underlay[i], 1), underlay[i].Bits())
		if err := l.Root.AddAddr(name, address); err != nil {
			return err
		}
		if i == 0 && family == 0 {
			l.Root.Addr = address.Addr()
		} else if i == 0 {
			l.Root.Addr6 = address.Addr()
		}
	}
	return nil
}

// Close kills every process of the lab and releases its namespaces. Closing twice is a no-op.
func (l *Lab) Close() error {
	l.mu.Lock()
	processes, nodes := l.processes, l.Nodes
	l.processes, l.Nodes = nil, nil
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, p := range processes {
		p.Kill()
	}
	for _, p := range processes {
		if _, err := p.Wait(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	for _, n := range nodes {
		errs = append(errs, n.destroy())
	}
	if l.Root != nil {
		for i := range l.options.Underlay {
			if !l.options.Direct {
				errs = append(errs, l.Root.DeleteLink(bridgeName(i)))
			}
		}
		errs = append(errs, l.Root.NS.Close(), os.RemoveAll(l.Root.Dir))
		l.Root = nil
	}
	return errors.Join(errs...)
}

// testingT is the part of *testing.T that [Start] uses.
type testingT interface {
	Fatal(...any)
	Log(...any)
	Failed() bool
	Cleanup(func())
}

// Start is [New] for tests: it fails the test if the lab cannot be built, prints the logs of its
// processes if the test failed, and closes the lab when the test ends.
func Start(t testingT, o Options) *Lab {
	l, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range l.Processes() {
				tail := strings.Join(p.Tail(tailLines), "\n")
				t.Log(p.Name + " on " + p.Node + " logged:\n" + tail)
			}
		}
		if err := l.Close(); err != nil {
			t.Log("close lab: ", err)
		}
	})
	return l
}

// tailLines is the number of log lines shown per process of a failed test.
const tailLines = 60

// Processes lists all processes started in the lab, in order, including those that have exited.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.processes)
}

// Await calls ok until it returns nil. If that takes longer than limit or ctx ends, it returns the
// last error of ok, wrapped together with the cause of ctx's end.
func Await(ctx context.Context, limit time.Duration, desc string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	for {
		lastErr := ok()
		if lastErr == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return fmt.Errorf("%s: %w (last error: %w)", desc, cause, lastErr)
			}
			return fmt.Errorf("%s: not within %v: %w", desc, limit, lastErr)
		case <-tick.C:
		}
	}
}

// awaitInterval is short against the events awaited and long against the cost of a check.
const awaitInterval = 10 * time.Millisecond

// CheckTUN returns nil if this user can open TUN devices; otherwise its error names the reason and
// the remedy.
func CheckTUN() error {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("open %s: %w: its usual mode is 0666 (sudo chmod 0666 %s); or use sudo",
			device, err, device)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %s: %w: the tun driver is not loaded (sudo modprobe tun)",
			device, err)
	default:
		return fmt.Errorf("open %s: %w", device, err)
	}
}

func bridgeName(i int) string { return fmt.Sprintf("under%d", i) }

// hostOf returns the n-th address of a subnet.
func hostOf(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b) // from AsSlice: always 4 or 16 bytes
	return a
}
