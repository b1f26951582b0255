package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write docs/commands.md")

// commandsHead is the part of docs/commands.md above the reference.
const commandsHead = `# The weft command

` + "`weft`" + ` is the operator's tool. Each command has ` + "`-h`" + `; ` + "`weft completion`" + ` prints a completion script for
a shell, ` + "`weft man DIR`" + ` writes manual pages. Each command that prints takes ` + "`--json`" + `.

Commands that look at a node ask its daemon through the control socket
(` + "`--control-socket`" + `, ` + "`/run/weft/weftd.sock`" + `), which is for root. In Kubernetes:

    kubectl exec -n kube-flannel POD -c kube-flannel -- /opt/bin/weft status

| exit status | meaning |
|---|---|
| 0 | success, nothing wrong |
| 1 | the command failed, or found a problem |
| 2 | wrong flag or argument |
| 3 | no daemon on this node, or no permission to ask it |
| 4 | no certain answer (weft trace) |

This page is generated from the program: ` + "`go test ./cmd/weft -run TestCommandsPage -update`" + `.
`

// TestCommandsPage holds docs/commands.md to the commands and their flags.
func TestCommandsPage(t *testing.T) {
	var b strings.Builder
	b.WriteString(commandsHead)
	writeReference(&b, newRoot())
	path := filepath.Join("..", "..", "docs", "commands.md")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if page, err := os.ReadFile(path); err != nil || string(page) != b.String() {
		t.Errorf("%s (%v) does not match the commands: run this test with -update", path, err)
	}
}

// writeReference writes a section for each command below cmd that is not hidden.
func writeReference(b *strings.Builder, cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Short == "" || c.Args == nil && !c.DisableFlagParsing {
			fmt.Fprintf(b, "\n%s lacks a summary or a check of its arguments\n", c.CommandPath())
		}
		fmt.Fprintf(b, "\n## %s\n\n%s%s.\n\n    %s\n", c.CommandPath(),
			strings.ToUpper(c.Short[:1]), c.Short[1:], c.UseLine())
		if c.Long != "" {
			fmt.Fprintf(b, "\n```\n%s\n```\n", strings.TrimSpace(c.Long))
		}
		if flags := c.LocalFlags().FlagUsages(); flags != "" {
			fmt.Fprintf(b, "\n```\n%s```\n", flags)
		}
		writeReference(b, c)
	}
}

// TestEveryCommandHasJSON excepts commands that print nothing but a file in the format of another
// program.
func TestEveryCommandHasJSON(t *testing.T) {
	without := []string{"weft test serve", "weft bench report", "weft docker-opts", "weft help", "weft completion"}
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if c.Hidden || slices.Contains(without, c.CommandPath()) {
				continue
			}
			if c.Flags().Lookup("json") == nil {
				t.Errorf("%s has no --json", c.CommandPath())
			}
			check(c)
		}
	}
	check(newRoot())
}

func TestVersionJSON(t *testing.T) {
	status, out, problems := weft(t, "", "version", "--json")
	var v map[string]string
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 || v["go"] == "" || v["arch"] == "" {
		t.Errorf("exit status %d, %v:\n%s%s", status, err, out, problems)
	}
}

func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if status, _, problems := weft(t, "", "man", dir); status != 0 {
		t.Fatal(problems)
	}
	for _, name := range []string{"weft.8", "weft-status.8", "weft-bench-report.8"} {
		if page, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.HasPrefix(string(page), ".nh\n.TH ") {
			t.Errorf("%s: %v:\n%.100s", name, err, page)
		}
	}
}
