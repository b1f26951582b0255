package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"weft/cmd/control"
)

// nodeColumns are widths in the table of nodes.
type nodeColumns struct{ name, recent int }

// newNodeColumns returns the widths: names get their lengths, but leave room for some recent rates.
func newNodeColumns(m topModel, nodes []topNode) nodeColumns {
	figures := 51 // the other columns, and spaces
	if m.last.FastPath != nil {
		figures += 7
	}
	rest, longest := m.width-figures, len(nodeHeader)
	for _, n := range nodes {
		longest = max(longest, utf8.RuneCountInString(n.Name))
	}
	name := min(longest, 24, max(rest-minRecent-2, 12))
	return nodeColumns{name, rest - name}
}

// minRecent is the smallest number of samples in a sparkline: as wide as its header.
const minRecent = 8

// recentLen returns the number of samples that fit the room for a sparkline and its distance.
func recentLen(room int) int {
	if room-2 < minRecent {
		return 0
	}
	return min(room-2, historyLen)
}

// recent returns a sparkline of the newest values, after a distance; empty if there is no room.
func recent(values []float64, room int) string {
	n := recentLen(room)
	if n == 0 {
		return ""
	}
	return "  " + sparkline(values[max(0, len(values)-n):])
}

// recentHeader returns the header of the sparklines.
func (c nodeColumns) recentHeader() string {
	n := recentLen(c.recent)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("  LAST %d s", n)
}

// flowColumns are widths in the table of flows. Without a way, all flows have the same carrier.
type flowColumns struct{ flow, way, node int }

// flowLine is a line of the table of flows.
type flowLine struct{ flow, direction, way, node, bits, packets, note string }

// newFlowColumns returns the widths for some flows: the flow gets what the others leave.
func newFlowColumns(m topModel, flows []control.TopFlow) flowColumns {
	const (
		figures = 21 // direction, two rates, and spaces
		note    = 26 // of a drop; cut off on narrow screens
		wide    = 100
	)
	c := flowColumns{node: len(nodeHeader)}
	rest, dropped := m.width-figures, false
	for _, f := range flows {
		c.node = max(c.node, utf8.RuneCountInString(f.Node))
		dropped = dropped || f.Dropped > 0
	}
	c.node = min(c.node, max(m.width/7, 8), 20)
	if m.last.FastPath != nil {
		c.way = len(" workers")
	}
	if dropped && m.width >= wide {
		rest -= note
	}
	c.flow = min(max(rest-c.node-c.way, 22), 90)
	return c
}

// line returns a line of the table.
func (c flowColumns) line(l flowLine) string {
	way := ""
	if c.way > 0 {
		way = " " + l.way
	}
	return fmt.Sprintf("%-*s %-3s%-*s %-*s %7s %7s  %s", c.flow, fit(l.flow, c.flow), l.direction,
		c.way, way, c.node, fit(l.node, c.node), l.bits, l.packets, l.note)
}

// fit shortens a text to a width in characters, in its middle.
func fit(text string, width int) string {
	r := []rune(text)
	if len(r) <= width || width < 2 {
		return cut(text, width)
	}
	tail := (width - 1) / 2
	return string(r[:width-1-tail]) + "…" + string(r[len(r)-tail:])
}

// cut shortens a line to a width in characters.
func cut(line string, width int) string {
	if r := []rune(line); len(r) > width {
		return string(r[:max(width, 0)])
	}
	return line
}

// pad lengthens a line to a width in characters.
func pad(line string, width int) string {
	return line + strings.Repeat(" ", max(0, width-len([]rune(line))))
}
