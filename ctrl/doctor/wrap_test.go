package doctor

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestWrap compares wrapped text with its words, which must be the same, and its lines with the
// width.
func TestWrap(t *testing.T) {
	const text = "the – kernel  drops packets:ofnewconnectionswhichisaverylongwordindeed at random"
	for width := range 60 {
		w := wrapper{width: width}
		w.line("✗ ", text)
		got := w.String()
		if have, want := strings.Fields(got), strings.Fields("✗ "+text); strings.Join(have, " ") != strings.Join(want, " ") {
			t.Errorf("width %d: words %q", width, have)
		}
		for i, line := range strings.Split(strings.TrimSuffix(got, "\n"), "\n") {
			if i > 0 && !strings.HasPrefix(line, "  ") {
				t.Errorf("width %d: line %q is not indented", width, line)
			}
			if width > 0 && utf8.RuneCountInString(line) > width && strings.Contains(strings.TrimSpace(line[min(len(line), 4):]), " ") {
				t.Errorf("width %d: line %q is too long", width, line)
			}
		}
		if width == 0 && strings.Count(got, "\n") != 1 {
			t.Errorf("wrapped without a width: %q", got)
		}
	}
}
