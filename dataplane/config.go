package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"

	"weft/dataplane/feature"
	"weft/dataplane/tun"
)

// Config is what an Engine is opened with. Device and Bind are required.
type Config struct {
	Device           string         // name of the TUN device, or a pattern such as "flannel%d" that the kernel fills in
	Bind             netip.AddrPort // the outer address and port to send from and to receive on
	MTU              int            // of the TUN, in bytes: the underlay's MTU less the outer headers; 0 leaves the kernel's default
	Workers          int            // goroutines, each with its own queues and socket, up to MaxWorkers; 0 is one a CPU
	Buffer           int            // of each socket, a direction, in bytes; 0 is defaultBuffer
	SourcePort       uint16         // worker i sends from this port plus i, for networks that spread by port; 0 is Bind's
	Spin             bool           // look for packets a little longer before sleeping, where CPUs are not contended; not on one CPU
	ECN              bool           // carry congestion marks between inner and outer header (RFC 6040); all nodes must
	DSCP             bool           // copy the inner DSCP to the outer header
	SourceCheck      SourceCheck    // what is asked of inbound packets
	Mode             Mode           // which engine
	DisabledFeatures []feature.Name // features that are not to be used even if the kernel has them
	Log              *slog.Logger   // told once of what an operator must know; nil is silence
}

// MaxWorkers is how many the queues of one TUN device suffice for.
const MaxWorkers = tun.MaxQueues / classes

// complete fills in the defaults and refuses what cannot work.
func (c Config) complete() (Config, error) {
	if c.Workers == 0 {
		c.Workers = min(runtime.GOMAXPROCS(0), MaxWorkers)
	}
	c.Spin = c.Spin && runtime.NumCPU() > 1
	if c.Buffer == 0 {
		c.Buffer = defaultBuffer
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Device == "":
		return c, errors.New("no name for the TUN device")
	case !c.Bind.IsValid():
		return c, errors.New("no address to bind")
	case c.Workers < 0, c.Workers > MaxWorkers:
		return c, fmt.Errorf("%d workers, 0 to %d are possible", c.Workers, MaxWorkers)
	case int(c.SourcePort)+c.Workers > 65536:
		return c, fmt.Errorf("no %d source ports from %d on", c.Workers, c.SourcePort)
	case c.SourcePort != 0 && c.SourcePort <= c.Bind.Port() && int(c.Bind.Port()) < int(c.SourcePort)+c.Workers:
		// A socket that only sends would share that port with those that receive, and take a part of what arrives.
		return c, fmt.Errorf("source ports %d to %d include %d, on which packets are received",
			c.SourcePort, int(c.SourcePort)+c.Workers-1, c.Bind.Port())
	}
	for _, f := range c.DisabledFeatures {
		if !slices.Contains(feature.All(), f) {
			return c, fmt.Errorf("there is no feature %q to do without, only %q", f, feature.All())
		}
	}
	return c, nil
}

// SourceCheck says what an inbound packet must prove before it is written to the TUN.
type SourceCheck uint8

const (
	// CheckKnown asks that the outer source is a node, that an inner source inside any lease is that node's,
	// and that the inner destination is ours. It lets inner sources outside all leases pass: a node's own
	// address, or what a router behind a node forwards.
	CheckKnown SourceCheck = iota
	// CheckStrict also refuses inner sources outside all leases.
	CheckStrict
	// CheckOff takes any sane packet from anybody, as flannel does.
	CheckOff
)

// ParseSourceCheck returns the check called "strict", "known" or "off".
func ParseSourceCheck(s string) (SourceCheck, error) {
	for _, c := range []SourceCheck{CheckStrict, CheckKnown, CheckOff} {
		if c.String() == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("source check %q is none of strict, known, off", s)
}

// String returns the name that ParseSourceCheck takes.
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

// Mode says which engine moves the packets. Both do the same, byte for byte.
type Mode uint8

const (
	// ModeAuto takes every feature that the kernel has, on either side.
	ModeAuto Mode = iota
	// ModeOffload is ModeAuto, but fails if the TUN takes no virtio header, on which most of the speed rests.
	ModeOffload
	// ModePortable reads and writes packets one by one and runs on any kernel.
	ModePortable
)

// ParseMode returns the mode called "auto", "offload" or "portable".
func ParseMode(s string) (Mode, error) {
	for _, m := range []Mode{ModeAuto, ModeOffload, ModePortable} {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("engine %q is none of auto, offload, portable", s)
}

// String returns the name that ParseMode takes.
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

// defaultBuffer is the size of a socket buffer in bytes that absorbs a pause of the worker of 5 ms at 10 Gb/s;
// wireguard-go chose about the same.
const defaultBuffer = 7 << 20
