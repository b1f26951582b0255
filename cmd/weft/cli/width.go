package cli

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// defaultWidth is the length of lines that are not written to a terminal.
const defaultWidth = 80

// lineWidth returns the length of lines on w in characters: that of the terminal, if it is one.
func lineWidth(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return defaultWidth
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return defaultWidth
	}
	return int(size.Col)
}
