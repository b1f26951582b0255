package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"weft/dataplane/feature"
	"weft/dataplane/tun"
)

// Config configures an Engine. Device and Bind are required.
type Config struct {
	// Device is the name of the TUN device, which may exist without a process, or a pattern such as
	// "flannel%d" that the kernel completes.
	Device string
	// MTU of the TUN device in bytes: the underlay's MTU minus the outer headers. 0 means the
	// kernel's default.
	MTU int

	// Bind is the outer address and port to send from and receive on.
	Bind netip.AddrPort
	// SourcePort makes worker i send from port SourcePort+i, for networks that balance load by
	// port. 0 means the port of Bind.
	SourcePort uint16
	// Buffer is the size of each socket's send and receive buffer in bytes; 0 means DefaultBuffer.
	Buffer int

	// Workers is the number of workers, at most MaxWorkers; 0 means one per CPU.
	Workers int
	// Spin makes workers busy-poll before they block, where CPUs are not contended. It has no
	// effect on a machine with one CPU.
	Spin bool

	// ECN copies congestion marks between inner and outer header (RFC 6040). All nodes must agree.
	ECN bool
	// DSCP copies the inner DSCP to the outer header.
	DSCP bool
	// SourceCheck applies to inbound packets.
	SourceCheck SourceCheck

	// FastPath selects whether the kernel carries packets that need no decision. It requires
	// Underlay, the name of the interface that has the address of Bind.
	FastPath FastPathMode
	Underlay string

	// Inherited are the descriptors of a former engine of the same configuration. Open closes them
	// if it fails.
	Inherited Descriptors
	// AwaitNodes is how long Run leaves packets in the kernel's queues before the first SetNodes.
	AwaitNodes time.Duration

	Mode             Mode
	DisabledFeatures []feature.Name // not used even if the kernel has them
	Log              *slog.Logger   // one-time messages for the operator; nil discards them
}

// MaxWorkers is the number of workers that the queues of one TUN device suffice for.
const MaxWorkers = tun.MaxQueues / numClasses

// withDefaults fills in the defaults and rejects invalid values.
func (c Config) withDefaults() (Config, error) {
	if c.Workers == 0 {
		c.Workers = min(runtime.GOMAXPROCS(0), MaxWorkers)
	}
	c.Spin = c.Spin && runtime.NumCPU() > 1
	if c.Buffer == 0 {
		c.Buffer = DefaultBuffer
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	lastSourcePort := int(c.SourcePort) + c.Workers - 1
	switch {
	case c.Device == "":
		return c, errors.New("no TUN device name")
	case !c.Bind.IsValid():
		return c, errors.New("no bind address")
	case c.Workers < 0, c.Workers > MaxWorkers:
		return c, fmt.Errorf("invalid number of workers %d: want 0 to %d", c.Workers, MaxWorkers)
	case lastSourcePort > 65535:
		return c, fmt.Errorf("source ports %d-%d exceed 65535", c.SourcePort, lastSourcePort)
	case c.SourcePort != 0 && c.SourcePort <= c.Bind.Port() && int(c.Bind.Port()) <= lastSourcePort:
		// A socket that only sends would share that port with the receiving ones and take a part of
		// the packets.
		return c, fmt.Errorf("source ports %d-%d include the receive port %d",
			c.SourcePort, lastSourcePort, c.Bind.Port())
	}
	for _, f := range c.DisabledFeatures {
		if !slices.Contains(feature.All(), f) {
			return c, fmt.Errorf("unknown feature %q: want one of %q", f, feature.All())
		}
	}
	return c, nil
}

// SourceCheck selects the checks that an inbound packet must pass before it is written to the TUN.
type SourceCheck uint8

const (
	// CheckKnown requires that the outer source is a node, that an inner source inside any lease
	// belongs to that node, and that the inner destination is local. Inner sources outside all
	// leases pass, such as a node's own address or packets that a router behind a node forwards.
	CheckKnown SourceCheck = iota
	// CheckStrict also rejects inner sources outside all leases.
	CheckStrict
	// CheckOff accepts every well-formed packet from any sender, as flannel does.
	CheckOff
)

// ParseSourceCheck returns the check named "strict", "known" or "off".
func ParseSourceCheck(s string) (SourceCheck, error) {
	for _, c := range []SourceCheck{CheckStrict, CheckKnown, CheckOff} {
		if c.String() == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("unknown source check %q: want strict, known or off", s)
}

// String returns the name that ParseSourceCheck accepts.
func (c SourceCheck) String() string {
	switch c {
	case CheckKnown:
		return "known"
	case CheckStrict:
		return "strict"
	case CheckOff:
		return "off"
	}
	return fmt.Sprintf("source check %d", uint8(c))
}

// Mode selects how packets move between the kernel and the workers. The packets are the same, byte
// for byte.
type Mode uint8

const (
	// ModeAuto uses every feature of the kernel, on either side.
	ModeAuto Mode = iota
	// ModeOffload is ModeAuto, but fails if the TUN device has no vnet header, which most of the
	// speed depends on.
	ModeOffload
	// ModePortable reads and writes packets one by one and runs on any kernel.
	ModePortable
)

// ParseMode returns the mode named "auto", "offload" or "portable".
func ParseMode(s string) (Mode, error) {
	for _, m := range []Mode{ModeAuto, ModeOffload, ModePortable} {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown engine %q: want auto, offload or portable", s)
}

// String returns the name that ParseMode accepts.
func (m Mode) String() string {
	switch m {
	case ModeAuto:
		return "auto"
	case ModeOffload:
		return "offload"
	case ModePortable:
		return "portable"
	}
	return fmt.Sprintf("engine %d", uint8(m))
}

// DefaultBuffer is a socket buffer size in bytes that absorbs a pause of the worker of 5 ms at 10
// Gb/s; wireguard-go uses about the same.
const DefaultBuffer = 7 << 20

// The resources of one worker, for callers with limits.
const (
	// WorkerMemory is the size of a worker's packet buffers in bytes.
	WorkerMemory = 11 << 19
	// WorkerDescriptors is the number of a worker's descriptors: TUN queues, a socket or two, an
	// eventfd and an epoll instance.
	WorkerDescriptors = numClasses + 4
)
