package fastpath

import (
	"os/exec"
	"testing"
)

// TestObjectUpToDate compiles bpf/fastpath.c: the embedded object must be its result.
func TestObjectUpToDate(t *testing.T) {
	for _, program := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("NOT TESTED:", err)
		}
	}
	if out, err := exec.Command("bpf/build", "-check").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
