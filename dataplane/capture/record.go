package capture

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Point is where a packet was seen.
type Point uint8

// The points, which are also the indices of the interfaces in a pcapng file.
const (
	Inner Point = iota // an inner packet
	Outer              // a datagram of the underlay with its outer headers
	numPoints
)

// String returns the point's name, which is that of the interface in a pcapng file.
func (p Point) String() string {
	switch p {
	case Inner:
		return "inner"
	case Outer:
		return "outer"
	}
	return fmt.Sprintf("point %d", uint8(p))
}

// Meta describes a packet, apart from its bytes.
type Meta struct {
	Time     time.Time
	Outbound bool       // from this node to another
	Worker   int        // -1 if the kernel carries the packet
	Node     string     // the other node; empty if unknown
	Outer    netip.Addr // of the other node or the unknown sender; invalid if unknown
	Device   string     // that the packet was seen on, if the kernel carries it
	Drop     string     // the reason's name; empty if the packet was not dropped
}

// Record is a captured packet.
type Record struct {
	Meta
	Point  Point
	Length int    // of the whole packet in bytes
	Bytes  []byte // of the beginning, up to the snapshot length
	Sample int    // stands for so many packets; 0 in a file
	Missed uint64 // packets missed since the previous record of the same ring
}

// Comment describes the packet in the way of a pcapng comment: words of the form name=value.
func (m *Meta) Comment() string {
	direction := "in"
	if m.Outbound {
		direction = "out"
	}
	text := "direction=" + direction
	if m.Node != "" {
		text += " node=" + m.Node
	}
	if m.Outer.IsValid() {
		text += " outer=" + m.Outer.String()
	}
	if m.Worker >= 0 {
		text += fmt.Sprintf(" worker=%d", m.Worker)
	}
	if m.Device != "" {
		text += " device=" + m.Device
	}
	if m.Drop != "" {
		return text + " drop=" + m.Drop
	}
	if m.Worker < 0 {
		return text + " verdict=kernel"
	}
	return text + " verdict=forwarded"
}

// parseComment sets the fields that Comment has written. It ignores unknown words.
func (m *Meta) parseComment(text string) {
	m.Worker = -1
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "direction":
			m.Outbound = value == "out"
		case "node":
			m.Node = value
		case "outer":
			// A value that is no address leaves the field invalid: unknown.
			m.Outer, _ = netip.ParseAddr(value)
		case "worker":
			if n, err := strconv.Atoi(value); err == nil {
				m.Worker = n
			}
		case "device":
			m.Device = value
		case "drop":
			m.Drop = value
		}
	}
}
