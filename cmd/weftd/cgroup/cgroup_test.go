package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// asChild is the environment variable with which the test binary prints its limits.
const asChild = "CGROUP_TEST_AS_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

// child prints the limits after a line of standard input.
func child() {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		fmt.Println(err)
		return
	}
	l, err := Read()
	fmt.Printf("%d %v %v\n", l.Memory, l.CPUs, err)
}

// tree writes files below a new root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	mountV2  = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	mountsV1 = "33 24 0:29 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n" +
		"34 24 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
	unlimitedV1 = "9223372036854771712\n"
)

var readTests = []struct {
	name  string
	files map[string]string
	want  Limits
}{
	{"no cgroups", nil, Limits{}},
	{"version 2", map[string]string{
		"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mountV2,
		"sys/fs/cgroup/a/b/memory.max": "52428800\n", "sys/fs/cgroup/a/b/memory.high": "max\n",
		"sys/fs/cgroup/a/b/cpu.max": "10000 100000\n",
	}, Limits{52428800, 0.1}},
	{"version 2, limits above", map[string]string{
		"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mountV2,
		"sys/fs/cgroup/a/b/memory.max": "52428800\n", "sys/fs/cgroup/a/memory.high": "30000000\n",
		"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
	}, Limits{30000000, 1.5}},
	{"version 2, cgroup namespace", map[string]string{
		"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
		"sys/fs/cgroup/memory.max": "52428800\n", "sys/fs/cgroup/cpu.max": "max 100000\n",
	}, Limits{52428800, 0}},
	{"version 2, mount of another namespace", map[string]string{
		"proc/self/cgroup":         "0::/\n",
		"proc/self/mountinfo":      strings.Replace(mountV2, " / ", " /../.. ", 1),
		"sys/fs/cgroup/memory.max": "52428800\n",
	}, Limits{52428800, 0}},
	{"version 1", map[string]string{
		"proc/self/cgroup": "9:memory:/k\n3:cpu,cpuacct:/k\n0::/\n", "proc/self/mountinfo": mountsV1,
		"sys/fs/cgroup/memory/k/memory.limit_in_bytes":  "52428800\n",
		"sys/fs/cgroup/memory/memory.limit_in_bytes":    unlimitedV1,
		"sys/fs/cgroup/cpu,cpuacct/k/cpu.cfs_quota_us":  "50000\n",
		"sys/fs/cgroup/cpu,cpuacct/k/cpu.cfs_period_us": "100000\n",
		"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":    "-1\n",
		"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us":   "100000\n",
	}, Limits{52428800, 0.5}},
	{"version 1, bind mount of a container", map[string]string{
		"proc/self/cgroup": "9:memory:/kubepods/pod1/c1\n",
		"proc/self/mountinfo": "33 24 0:29 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro - cgroup cgroup " +
			"rw,memory\n",
		"sys/fs/cgroup/memory/memory.limit_in_bytes": "52428800\n",
	}, Limits{52428800, 0}},
	{"both, memory in version 1", map[string]string{
		"proc/self/cgroup":                             "9:memory:/k\n0::/k\n",
		"proc/self/mountinfo":                          mountsV1 + strings.Replace(mountV2, "fs/cgroup", "fs/cgroup/unified", 1),
		"sys/fs/cgroup/memory/k/memory.limit_in_bytes": "52428800\n",
		"sys/fs/cgroup/unified/k/cgroup.procs":         "1\n",
	}, Limits{52428800, 0}},
	{"no limits", map[string]string{
		"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
		"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/cpu.max": "max 100000\n",
	}, Limits{}},
}

func TestReadTrees(t *testing.T) {
	for _, test := range readTests {
		if got, err := read(tree(t, test.files)); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.name, got, err, test.want)
		}
	}
}

func TestReadInvalidValues(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
		"sys/fs/cgroup/memory.max": "many\n", "sys/fs/cgroup/cpu.max": "10000 100000\n",
	})
	got, err := read(root)
	if err == nil || !strings.Contains(err.Error(), "memory.max") || got != (Limits{0, 0.1}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestReadKernel runs a child in a cgroup of the kernel.
func TestReadKernel(t *testing.T) {
	h, err := readHierarchies("/")
	if err != nil {
		t.Fatal(err)
	}
	memory := newCgroup(t, h, "memory", map[string]string{"memory.limit_in_bytes": "52428800"})
	cpu := newCgroup(t, h, "cpu", map[string]string{"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "10000"})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asChild+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{memory, cpu} {
		pid := fmt.Sprint(cmd.Process.Pid)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0o644); err != nil {
			t.Error(err)
		}
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if want := "52428800 0.1 <nil>\n"; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

// newCgroup makes a cgroup of version 1 below the process's own.
func newCgroup(t *testing.T, h hierarchies, controller string, files map[string]string) string {
	t.Helper()
	dirs := h.dirs(controller)
	if len(dirs) == 0 {
		t.Skipf("NOT TESTED: no cgroup with controller %s", controller)
	}
	parent := dirs[len(dirs)-1]
	dir, err := os.MkdirTemp(parent, "weft-test-")
	if err != nil {
		t.Skip("NOT TESTED: cannot create a cgroup: ", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for name, value := range files {
		err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			t.Skip("NOT TESTED: not a cgroup of version 1 that can be limited: ", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
