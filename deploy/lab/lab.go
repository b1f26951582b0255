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

// Mode says what the underlay's links do with frames above the MTU that a sender left for the hardware to cut.
type Mode string

const (
	// ModeOff passes such frames whole (up to 64 KiB), as links inside one machine do. It flatters whatever uses them.
	ModeOff Mode = "off"
	// ModeWire has no segmentation offload: every frame is cut to the MTU before it leaves, as on a real wire, and the
	// receiving side may join frames again (GRO).
	ModeWire Mode = "wire"
)

const (
	rootName     = "root"
	underlayPort = "eth0" // of a node
	podPort      = "eth0" // of a pod
	// managementPort leads a node to root.
	managementPort = "mgmt0"
	podBridge      = "cni0" // of a node, as the CNI bridge plugin names it

	defaultMTU = 1500
	firstHost  = 11 // of a node in its underlay subnet; root is host 1

	// closeTimeout bounds how long Close waits for processes that it has killed.
	closeTimeout = 5 * time.Second
)

// Options describes a lab. The zero value is two nodes with one pod each.
type Options struct {
	Nodes       int // 2 if 0
	PodsPerNode int // 1 if 0, none if negative
	// Underlay are the subnets of the nodes, 172.31.0.0/24 if empty. With several of them, nodes are dealt out in turn
	// and root routes between them.
	Underlay []netip.Prefix
	// Underlay6 gives nodes IPv6 addresses as well: none, or one for each of Underlay.
	Underlay6 []netip.Prefix
	MTU       int  // of the underlay, in bytes; 1500 if 0
	Mode      Mode // ModeOff if empty
	// Direct joins exactly two nodes by one link without a bridge and without a default route: nothing but the two ends
	// costs CPU time.
	Direct bool
	// Management is a /24 for a second device of each node, mgmt0, which leads to root alone: for pages and servers that
	// must not share the underlay. Without it, a direct lab's nodes do not reach root.
	Management netip.Prefix
	// Name goes before the names of nodes and pods, for several direct labs at once.
	NamePrefix string
}

// Lab is a running network of nodes. Its methods may be called from several goroutines.
type Lab struct {
	// Root is the lab's own network namespace, where this process lives: servers listen on Root.Addr. It takes part in
	// partitions like a node.
	Root  *Node
	Nodes []*Node

	options Options

	mu        sync.Mutex
	processes []*Process
}

// New builds the underlay, the nodes and their pods. The pods have no address and no link until [Node.Attach]. It fails
// outside [Run] or [Main].
func New(ctx context.Context, o Options) (*Lab, error) {
	if !Inside() {
		return nil, errors.New("build lab: not inside its namespaces: call lab.Run or lab.Main first")
	}
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("build lab: %w", err)
	}
	l := &Lab{options: o}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

func (o Options) complete() (Options, error) {
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
	case o.Mode != ModeOff && o.Mode != ModeWire:
		return o, fmt.Errorf("mode %q: want %s or %s", o.Mode, ModeWire, ModeOff)
	case len(o.Underlay6) != 0 && len(o.Underlay6) != len(o.Underlay):
		return o, fmt.Errorf("%d IPv6 underlays for %d IPv4 ones", len(o.Underlay6), len(o.Underlay))
	case o.Direct && (o.Nodes != 2 || len(o.Underlay) != 1):
		return o, errors.New("a direct link joins two nodes in one subnet")
	}
	return o, nil
}

func (l *Lab) build(ctx context.Context) error {
	if err := l.makeRoot(); err != nil {
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
		return l.joinDirectly()
	}
	return nil
}

// makeRoot gives the lab's own namespace a bridge and an address for each underlay subnet.
func (l *Lab) makeRoot() error {
	ns, err := openRoot()
	if err != nil {
		return err
	}
	dir := filepath.Join(markFolder, l.options.NamePrefix+rootName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	l.Root = &Node{NS: ns, Dir: dir, lab: l}
	if err := l.Root.forward(); err != nil {
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

func openRoot() (ns *NS, err error) {
	err = onThread(func() error {
		// Threads are in the namespace of the process unless they were moved, and moved ones are thrown away.
		ns, err = openNS(rootName)
		return err
	})
	return ns, err
}

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

// Close ends every process of the lab and gives its namespaces back. Closing twice does nothing.
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

// testing is what [Start] needs of a *testing.T.
type testing interface {
	Fatal(...any)
	Log(...any)
	Failed() bool
	Cleanup(func())
}

// Start is [New] for a test: it fails the test at once when the lab cannot be built, prints what the processes logged if
// the test failed, and closes the lab at its end.
func Start(t testing, o Options) *Lab {
	l, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range l.Processes() {
				t.Log(p.Name + " on " + p.Node + " logged:\n" + strings.Join(p.Tail(tailLines), "\n"))
			}
		}
		if err := l.Close(); err != nil {
			t.Log("close lab: ", err)
		}
	})
	return l
}

// tailLines is how much of a daemon's log a failed test shows.
const tailLines = 60

// Processes lists what was started in the lab, ended processes included, in the order of their start.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.processes)
}

// Await calls ok until it returns nil, and fails with its last error when that takes longer than limit or ctx ends; then
// with the cause of ctx's end too.
func Await(ctx context.Context, limit time.Duration, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	for {
		last := ok()
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return fmt.Errorf("%s: %w (so far: %w)", what, cause, last)
			}
			return fmt.Errorf("%s: not within %v: %w", what, limit, last)
		case <-tick.C:
		}
	}
}

// awaitInterval is short against everything that is awaited and long against the cost of asking.
const awaitInterval = 10 * time.Millisecond

// CheckTUN says whether TUN devices can be made here, and if not, why and what helps.
func CheckTUN() error {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("open %s: %w: its usual mode lets everybody (sudo chmod 0666 %s), or run with sudo", device, err, device)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %s: %w: this kernel has no tun driver loaded (sudo modprobe tun)", device, err)
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
