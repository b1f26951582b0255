package bench

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// A process has limited rights in a user namespace, although it is root with every capability there.
func TestRights(t *testing.T) {
	const inside = "WEFT_TEST_RIGHTS"
	if os.Getenv(inside) != "" {
		t.Log("rights:", rights())
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestRights$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	own := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: own, GidMappings: own}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "rights: limited\n") {
		t.Errorf("%v, want limited rights:\n%s", err, out)
	}
}
