package doctor

import (
	"strings"
	"unicode/utf8"
)

// wrapper collects text in lines of at most width characters, unless a word alone is longer.
type wrapper struct {
	strings.Builder
	width int // no limit if 0
}

// line adds a paragraph that begins with prefix. Its further lines are indented as far.
func (w *wrapper) line(prefix, text string) {
	indent := utf8.RuneCountInString(prefix)
	w.WriteString(prefix)
	at := indent
	for i, word := range strings.Split(text, " ") {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case w.width > 0 && at+1+n > w.width:
			w.WriteString("\n" + strings.Repeat(" ", indent))
			at = indent
		default:
			w.WriteByte(' ')
			at++
		}
		w.WriteString(word)
		at += n
	}
	w.WriteByte('\n')
}
