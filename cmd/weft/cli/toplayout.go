package cli

import (
	"fmt"
	"strings"

	"weft/cmd/control"
)

// nodeWidth returns the width of the names in the table of nodes, beside its other columns, which
// take 55 characters, and, on wide screens, 22 for the recent rates.
func nodeWidth(screen int) int { return min(max(screen-55-22, 12), 24) }

// columns are widths in the table of flows.
type columns struct{ flow, node int }

// flowColumns returns the widths for some flows on a screen: the flow gets what the others leave.
func flowColumns(screen int, flows []control.TopFlow) columns {
	const (
		figures = 27 // direction, two rates, and spaces
		note    = 26 // of a drop; cut off on narrow screens
		wide    = 100
	)
	c := columns{node: min(max(screen/7, 8), 20)}
	rest := screen - figures - c.node
	for _, f := range flows {
		if f.Dropped > 0 && screen >= wide {
			rest -= note
			break
		}
	}
	c.flow = min(max(rest, 22), 90)
	return c
}

// line returns a line of the table.
func (c columns) line(flow, direction, node, bits, packets, note string) string {
	return fmt.Sprintf("%-*s %-3s %-*s %9s %8s  %s", c.flow, fit(flow, c.flow), direction,
		c.node, fit(node, c.node), bits, packets, note)
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
