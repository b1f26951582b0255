package dataplane

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// Config is what an Engine is opened with. Device, Bind and MTU are required.
type Config struct {
	Device      string         // name of the TUN device, or a pattern such as "flannel%d" that the kernel fills in
	Bind        netip.AddrPort // the outer address and port to send from and to receive on
	MTU         int            // of the TUN, in bytes: the underlay's MTU less encap.OverheadUDP4
	Workers     int            // goroutines, each with its own queue and socket; 0 is one a CPU
	Buffer      int            // of each socket, a direction, in bytes; 0 is defaultBuffer
	SourceCheck SourceCheck    // what is asked of inbound packets
	Log         *slog.Logger   // told once of what an operator must know; nil is silence
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

// defaultBuffer is the size of a socket buffer in bytes that absorbs a pause of the worker of 5 ms at 10 Gb/s;
// wireguard-go chose about the same.
const defaultBuffer = 7 << 20
