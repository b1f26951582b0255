package ctrl

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func variable(name string) string {
	return map[string]string{"SUBNET": "10.5.2.0/24", "TWO": "a b", "EMPTY": "", "Q": `"`}[name]
}

func TestSplitCommand(t *testing.T) {
	tests := []struct {
		line string
		want []string
	}{
		{"", nil},
		{"  \t\n ", nil},
		{"ip route add $SUBNET via ${SUBNET}", []string{"ip", "route", "add", "10.5.2.0/24", "via", "10.5.2.0/24"}},
		{`ip route add "$SUBNET"`, []string{"ip", "route", "add", "10.5.2.0/24"}},
		{`echo '$SUBNET' "a  b"c`, []string{"echo", "$SUBNET", "a  bc"}},
		{`sh -c 'read x; echo "$x" >&2 | cat'`, []string{"sh", "-c", `read x; echo "$x" >&2 | cat`}},
		{"a $TWO b", []string{"a", "a b", "b"}},
		{"a $EMPTY b", []string{"a", "b"}},
		{`a "$EMPTY" ''`, []string{"a", "", ""}},
		{`a\ b \$SUBNET \'`, []string{"a b", "$SUBNET", "'"}},
		{`"a\"b\\c\$d\e"`, []string{`a"b\c$d\e`}},
		{"$ 5$ a$-", []string{"$", "5$", "a$-"}},
		{"$Q$Q", []string{`""`}},
		{"x$SUBNET-y_$SUBNET", []string{"x10.5.2.0/24-y_10.5.2.0/24"}},
		{"$1 $_9x", []string{"$1"}},
	}
	for _, tt := range tests {
		got, err := splitCommand(tt.line, variable)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v; want %q", tt.line, got, err, tt.want)
		}
	}
}

func TestSplitCommandRefuses(t *testing.T) {
	for _, line := range []string{"a; b", "a | b", "a && b", "a 2>/dev/null", "a <f", "`a`", "(a)", "a $(b)", "\"`a`\"",
		`"$(b)"`} {
		if _, err := splitCommand(line, variable); !errors.Is(err, errNeedsShell) {
			t.Errorf("%q: got %v", line, err)
		}
	}
	for _, line := range []string{"'a", `"a`, `a\`, "${", "${}", "${a-b}", `"${`} {
		if got, err := splitCommand(line, variable); err == nil {
			t.Errorf("%q: got %q and no error", line, got)
		}
	}
}

// FuzzSplitCommand looks for a panic or an endless loop; without values for variables words only
// get shorter.
func FuzzSplitCommand(f *testing.F) {
	for _, s := range []string{"a b", `a "b c" 'd'`, "$SUBNET ${TWO}", `a\ b "c\"d"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := splitCommand(line, func(string) string { return "" })
		if err != nil {
			return
		}
		for _, w := range got {
			if len(w) > len(line) {
				t.Errorf("%q: word %q is longer than the line", line, w)
			}
		}
	})
}

// TestSplitCommandAsShell checks the words against those of a real shell, for lines that mean the
// same to both.
func TestSplitCommandAsShell(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("NOT TESTED: there is no sh")
	}
	for _, line := range []string{`a b`, `a  "b  c" 'd $X'`, `"$SUBNET"x$SUBNET`, `a\ b "c\"d\\e\$f\g"`,
		`'' "" $EMPTY x`, `a"b"'c'\d`} {
		c := exec.Command(sh, "-c", `printf '<%s>\n' `+line)
		c.Env = []string{"SUBNET=10.5.2.0/24", "EMPTY="}
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		words, err := splitCommand(line, variable)
		if err != nil {
			t.Fatal(err)
		}
		if got := "<" + strings.Join(words, ">\n<") + ">\n"; got != string(out) {
			t.Errorf("%q: got\n%swant\n%s", line, got, out)
		}
	}
}

func TestRunCommand(t *testing.T) {
	out, err := RunCommand(t.Context(), `sh -c 'read x; echo "  $SUBNET $x $1"; echo noise >&2' - "$SUBNET"`,
		"SUBNET=10.5.2.0/24\nOTHER=1", "from stdin")
	if want := "10.5.2.0/24 from stdin 10.5.2.0/24"; err != nil || out != want {
		t.Errorf("got %q, %v; want %q", out, err, want)
	}
	if out, err := RunCommand(t.Context(), "", "", ""); out != "" || err != nil {
		t.Errorf("no command: got %q, %v", out, err)
	}
	if _, err := RunCommand(t.Context(), "sh -c 'echo reason >&2; exit 3'", "", ""); err == nil ||
		!strings.Contains(err.Error(), "exit status 3: reason") {
		t.Errorf("got %v", err)
	}
	if _, err := RunCommand(t.Context(), "'open", "", ""); err == nil {
		t.Error("an open quotation ran")
	}
	out, err = RunCommand(t.Context(), "export X=`echo $SUBNET | cut -d/ -f1`; echo \"$X\" 2>/dev/null && cat",
		"SUBNET=10.5.2.0/24", "stdin")
	if want := "10.5.2.0\nstdin"; err != nil || out != want {
		t.Errorf("by a shell: got %q, %v; want %q", out, err, want)
	}
	// Variables of the process environment are expanded too, as flannel documents for PATH.
	t.Setenv("WEFT_TEST", "from outside")
	f := filepath.Join(t.TempDir(), "out")
	if _, err := RunCommand(t.Context(), `sh -c 'echo "$WEFT_TEST $1" >$2' - "$WEFT_TEST" `+f, "", ""); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(f); err != nil || string(b) != "from outside from outside\n" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestRunCommandLimits ends commands that print without end or outlive their context, with the
// children of their shell.
func TestRunCommandLimits(t *testing.T) {
	if _, err := RunCommand(t.Context(), "yes | cat", "", ""); err == nil ||
		!strings.Contains(err.Error(), "output exceeds 65536 bytes") {
		t.Errorf("endless output: got %v", err)
	}
	out, err := RunCommand(t.Context(), "sh -c 'yes | head -c 9999 >&2; yes | head -c 65536'", "", "")
	if err != nil || len(out) < 65535 {
		t.Errorf("output at the limit: got %d bytes, %v", len(out), err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	f := filepath.Join(t.TempDir(), "child")
	go func() {
		defer cancel(errors.New("ended"))
		for t.Context().Err() == nil {
			if b, err := os.ReadFile(f); err == nil && strings.HasSuffix(string(b), "\n") {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, err = RunCommand(ctx, "sleep 3600 & echo $! >"+f+"; wait", "", "")
	if err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("endless command: got %v", err)
	}
	child, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
		if err != nil || strings.Contains(string(status), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the shell's child still runs: %s", status)
		}
	}
}
