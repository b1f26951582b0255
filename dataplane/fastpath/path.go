//go:build amd64 || arm64

package fastpath

import (
	"bytes"
	_ "embed" // the programs
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"weft/dataplane/fib"
)

//go:embed bpf/fastpath.o
var object []byte

// Path is the programs on one TUN device and one underlay interface. Its methods may be called
// concurrently.
type Path struct {
	config Config

	mu      sync.Mutex // guards the rest
	objects objects
	hooks   [numHooks]hook
	flags   uint8
	place   Place
	paused  string                  // see Paused
	nodes   map[prefixKey]nodeValue // as in the kernel's map
	counted map[netip.Addr]bool     // keys of the kernel's map of endpoints
	mtus    map[netip.Addr]uint16   // of the paths to outer addresses; absent if unknown
	avoided map[netip.Addr]bool     // outer addresses that Avoid has set
	past    Traffic                 // of endpoints that were removed
	device  int                     // index of the TUN device
	stage   int                     // index of the stage's near end
	targets [numHooks]int           // indices of the interfaces of the hooks
	// waiting means that the programs of an earlier process still carry the packets, until this one
	// knows the nodes.
	waiting bool
}

// objects are the programs and maps in the kernel. The names are those of bpf/fastpath.c.
type objects struct {
	Outbound  *ebpf.Program `ebpf:"outbound"`
	Inbound   *ebpf.Program `ebpf:"inbound"`
	Joined    *ebpf.Program `ebpf:"joined"`
	Settings  *ebpf.Map     `ebpf:"settings"`
	Heartbeat *ebpf.Map     `ebpf:"heartbeat"`
	Nodes     *ebpf.Map     `ebpf:"nodes"`
	Endpoints *ebpf.Map     `ebpf:"endpoints"`
	Flows     *ebpf.Map     `ebpf:"flows"`
	Load      *ebpf.Map     `ebpf:"load"`
	Verdicts  *ebpf.Map     `ebpf:"verdicts"`
}

// Open loads the programs and attaches them. If those of an earlier process are attached to the
// same interfaces, they stay in force until SetNodes. The error wraps ErrUnsupported, or is
// ErrOtherOwner, if this host cannot have a fast path.
func Open(c Config) (*Path, error) {
	p := &Path{config: c, counted: make(map[netip.Addr]bool), mtus: make(map[netip.Addr]uint16)}
	if err := p.load(); err != nil {
		return nil, err
	}
	if err := p.Attach(c.Place); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// load loads the programs and creates their maps.
func (p *Path) load() error {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return fmt.Errorf("read programs: %w", err)
	}
	if err := spec.LoadAndAssign(&p.objects, nil); err != nil {
		return loadError(err)
	}
	return nil
}

// loadError describes why the kernel does not load the programs. Without a capability its own error
// is that it does not permit them, or, of a verifier that checks unprivileged programs, a long one.
func loadError(err error) error {
	for _, c := range []struct {
		number int
		name   string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}} {
		if has, capErr := hasCapability(c.number); capErr == nil && !has {
			return fmt.Errorf("%w: no %s: %w", ErrUnsupported, c.name, err)
		}
	}
	return fmt.Errorf("%w: load programs: %w", ErrUnsupported, err)
}

// hasCapability reports whether the calling thread has a capability, or CAP_SYS_ADMIN, which
// includes those of BPF.
func hasCapability(number int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 64 capabilities, 32 each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	has := func(n int) bool { return data[n/32].Effective&(1<<(n%32)) != 0 }
	return has(number) || has(unix.CAP_SYS_ADMIN), nil
}

// close closes the descriptors. Programs that are attached stay.
func (o *objects) close() error {
	return errors.Join(o.Outbound.Close(), o.Inbound.Close(), o.Joined.Close(),
		o.Settings.Close(), o.Heartbeat.Close(), o.Nodes.Close(), o.Endpoints.Close(),
		o.Flows.Close(), o.Load.Close(), o.Verdicts.Close())
}

// Attach moves the programs to other interfaces or another address. Where they are already, they
// stay.
func (p *Path) Attach(at Place) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	device, err := net.InterfaceByName(at.Device)
	if err != nil {
		return fmt.Errorf("TUN device %s: %w", at.Device, err)
	}
	underlay, err := net.InterfaceByName(at.Underlay)
	if err != nil {
		return fmt.Errorf("underlay interface %s: %w", at.Underlay, err)
	}
	if err := checkUnderlay(underlay); err != nil {
		return err
	}
	near, far, err := openStage(at.Device)
	if err != nil {
		return err
	}
	p.place, p.device, p.stage = at, device.Index, near
	if err := p.writeSettings(device.Index, underlay); err != nil {
		return err
	}
	p.targets = [numHooks]int{
		hookOutbound: device.Index, hookJoined: far, hookInbound: underlay.Index,
	}
	for kind, target := range p.targets {
		if h := p.hooks[kind]; h != nil && h.isOn(target) {
			continue
		}
		if err := p.attach(hookKind(kind)); err != nil {
			return err
		}
	}
	return nil
}

// placeOf returns the place of a program. The caller holds p.mu.
func (p *Path) placeOf(kind hookKind) place {
	return place{kind, p.targets[kind], p.place.Device}
}

// attach attaches one program. The caller holds p.mu.
func (p *Path) attach(kind hookKind) error {
	at := p.placeOf(kind)
	h, err := at.adopt()
	if err != nil {
		return err
	}
	if h != nil {
		p.waiting = true
	} else if h, err = at.attach(p.program(kind)); err != nil {
		return err
	}
	old := p.hooks[kind]
	p.hooks[kind] = h
	if old == nil {
		return nil
	}
	return old.close()
}

func (p *Path) program(kind hookKind) *ebpf.Program {
	return [numHooks]*ebpf.Program{
		p.objects.Outbound, p.objects.Joined, p.objects.Inbound,
	}[kind]
}

// checkUnderlay returns an error if the programs cannot use the interface.
func checkUnderlay(i *net.Interface) error {
	const ethernetAddr = 6
	if len(i.HardwareAddr) != ethernetAddr {
		return fmt.Errorf("%w: interface %s is not Ethernet", ErrUnsupported, i.Name)
	}
	return nil
}

// writeSettings writes the settings. The caller holds p.mu.
func (p *Path) writeSettings(device int, underlay *net.Interface) error {
	local, port := p.place.Local.Addr().Unmap(), p.place.Local.Port()
	source := port
	if p.config.SourcePort != 0 {
		source = p.config.SourcePort
	}
	s := settingsValue{
		Local: local.As16(), Device: uint32(device), Underlay: uint32(underlay.Index),
		Port: bigEndian(port), Source: bigEndian(source),
		Check: uint8(p.config.Check), TOSMask: p.config.TOSMask,
		Flags: p.flags | familyBit(local),
		Stage: uint32(p.stage),
	}
	if err := p.objects.Settings.Put(uint32(0), s); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// SetNodes sets the subnets of this node and of all others, and returns the last counts of outer
// addresses that are no longer a node's. The first call replaces the programs of an earlier
// process.
func (p *Path) SetNodes(local fib.Node, others []fib.Node) (map[netip.Addr]Traffic, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gone, err := p.setEndpoints(others)
	if err != nil {
		return gone, err
	}
	if err := p.setPrefixes(p.nodeValues(local, others)); err != nil {
		return gone, err
	}
	if !p.waiting {
		return gone, nil
	}
	if err := p.beat(); err != nil {
		return gone, err
	}
	for i, h := range p.hooks {
		if err := h.update(p.program(hookKind(i))); err != nil {
			return gone, fmt.Errorf("replace program: %w", err)
		}
	}
	p.waiting = false
	return gone, nil
}

// ChangeNodes sets the nodes to which prefixes and the addresses of endpoints lead; nil if to none.
// It returns the last counts of outer addresses that are no longer a node's. After an error,
// SetNodes must be called.
func (p *Path) ChangeNodes(inner, outer map[netip.Prefix]*fib.Node) (map[netip.Addr]Traffic, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gone := make(map[netip.Addr]Traffic)
	for prefix, n := range outer {
		if err := p.changeEndpoint(prefix.Addr(), n != nil, gone); err != nil {
			return gone, err
		}
	}
	for prefix, n := range inner {
		if err := p.changePrefix(newPrefixKey(prefix), n); err != nil {
			return gone, err
		}
	}
	return gone, nil
}

// Beat records that the daemon runs. The programs believe so for 350 ms (LIFE in bpf/fastpath.c).
func (p *Path) Beat() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beat()
}

func (p *Path) beat() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	return p.writeHeartbeat(uint64(now.Nano()))
}

// Leave records that the daemon ends: from now on, the programs take every packet that they can.
func (p *Path) Leave() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writeHeartbeat(0)
}

func (p *Path) writeHeartbeat(ns uint64) error {
	if err := p.objects.Heartbeat.Put(uint32(0), ns); err != nil {
		return fmt.Errorf("write heartbeat: %w", err)
	}
	return nil
}

// Watch pauses outbound if pause is true, while a capture or a shaper is on the TUN device, as the
// packets that outbound takes pass neither, and while it finds no next hops. It returns an error if
// a program is no longer attached, or ErrOtherOwner if another one is beside it, whose packets ours
// would take.
func (p *Path) Watch(pause bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for kind, h := range p.hooks {
		at := p.placeOf(hookKind(kind))
		if err := at.check(h); err != nil {
			return err
		}
		if err := p.findOther(at); err != nil {
			return err
		}
	}
	paused, err := pauseReason(p.place, p.device)
	if err != nil {
		return err
	}
	p.paused = paused
	flags := p.flags &^ flagPaused
	if paused != "" || pause {
		flags |= flagPaused
	}
	if flags == p.flags {
		return nil
	}
	p.flags = flags
	underlay, err := net.InterfaceByName(p.place.Underlay)
	if err != nil {
		return fmt.Errorf("underlay interface %s: %w", p.place.Underlay, err)
	}
	return p.writeSettings(p.device, underlay)
}

// findOther is place.findOther for a place of a program of this path, or of an earlier process that
// still carries the packets. The caller holds p.mu.
func (p *Path) findOther(at place) error {
	if p.waiting {
		return nil
	}
	info, err := p.program(at.kind).Info()
	if err != nil {
		return fmt.Errorf("identify %s program: %w", at.kind, err)
	}
	id, _ := info.ID()
	return at.findOther(id)
}

// Paused returns why outbound passes every packet, such as a capture or a shaper on the TUN device;
// empty if it does not.
func (p *Path) Paused() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// Persistent reports whether the programs outlast the process.
func (p *Path) Persistent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.hooks {
		if h == nil || !h.lasts() {
			return false
		}
	}
	return true
}

// Close releases the descriptors. Programs that outlast the process stay attached.
func (p *Path) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for i, h := range p.hooks {
		if h == nil {
			continue
		}
		if hookKind(i) == hookJoined && !h.lasts() {
			errs = append(errs, removeStage(p.place.Device))
		}
		errs = append(errs, h.close())
		p.hooks[i] = nil
	}
	return errors.Join(append(errs, p.objects.close())...)
}
