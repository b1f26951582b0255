package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is text in aligned columns, with lines that may be marked as a problem.
type screen struct {
	lines []line
}

// line is a line of a screen. Cells align with those of the lines of the same block.
type line struct {
	cells   []string
	problem bool
}

func (s *screen) add(problem bool, cells ...string) {
	s.lines = append(s.lines, line{cells, problem})
}

// gap adds an empty line, after which columns are aligned afresh.
func (s *screen) gap() { s.lines = append(s.lines, line{}) }

// Escape sequences of a terminal (ECMA-48, 8.3.117).
const red, plain = "\x1b[31m", "\x1b[0m"

// write prints the screen. Problems are red if color is set, and begin with an exclamation mark
// otherwise.
func (s *screen) write(w io.Writer, color bool) error {
	var b strings.Builder
	for from := 0; from < len(s.lines); from++ {
		to := from
		for to < len(s.lines) && len(s.lines[to].cells) > 0 {
			to++
		}
		block := s.lines[from:to]
		widths := columnWidths(block)
		for _, l := range block {
			before, after := "  ", ""
			switch {
			case l.problem && color:
				before, after = red+"  ", plain
			case l.problem:
				before = "! "
			}
			fmt.Fprintf(&b, "%s%s%s\n", before, l.align(widths), after)
		}
		if to < len(s.lines) {
			b.WriteByte('\n')
		}
		from = to
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// columnWidths returns the width of each column but the last of a line, which is not padded.
func columnWidths(block []line) []int {
	var widths []int
	for _, l := range block {
		for i, c := range l.cells[:len(l.cells)-1] {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	return widths
}

func (l line) align(widths []int) string {
	var b strings.Builder
	for i, c := range l.cells {
		b.WriteString(c)
		if i < len(l.cells)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// wantsColor reports whether output to w may contain colors: on a terminal, unless $NO_COLOR is set
// (https://no-color.org).
func wantsColor(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
