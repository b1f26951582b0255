package report

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Root in a user namespace has every capability there, but not on the host.
// there.
func TestPrivileges(t *testing.T) {
	const inside = "WEFT_TEST_PRIVILEGES"
	if os.Getenv(inside) != "" {
		t.Log("privileges:", privileges())
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPrivileges$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	own := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: own, GidMappings: own}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "privileges: limited\n") {
		t.Errorf("%v, want limited privileges:\n%s", err, out)
	}
}
