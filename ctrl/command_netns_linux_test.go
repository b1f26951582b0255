package ctrl

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestNetnsRemoveCommands removes the commands of a former network config: those that were run, and
// not yet removed.
func TestNetnsRemoveCommands(t *testing.T) {
	k := open(t)
	log := filepath.Join(t.TempDir(), "log")
	command := func(id string) Command {
		return Command{ID: id, Add: "echo add $SUBNET >>" + log, Remove: "read x; echo remove $SUBNET $x >>" + log,
			Env: "SUBNET=" + id, Stdin: "input"}
	}
	two, three := command("10.5.2.0/24"), command("10.5.3.0/24")
	failing := Command{ID: "10.5.4.0/24", Remove: "sh -c 'exit 3'"}
	ops := []Op{{Replace, two}, {Replace, three}, {Delete, three}, {Replace, failing}}
	if err := errors.Join(k.Apply(t.Context(), ops)...); err != nil {
		t.Fatal(err)
	}
	if err := k.RemoveCommands(t.Context()); err == nil {
		t.Error("no error of the command that fails")
	}
	const want = "add 10.5.2.0/24\nadd 10.5.3.0/24\nremove 10.5.3.0/24 input\nremove 10.5.2.0/24 input\n"
	if got, err := os.ReadFile(log); err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}
